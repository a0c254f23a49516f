"""Every command uses the averaged weights of a run whose config averages them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

from cli import main
from rampart.files import fingerprint
from tests.commands.toy import SETTINGS
from tests.conftest import ROOT

AVERAGED = {"class_path": "callbacks.AveragedWeights", "init_args": {"decay": 0.9, "start": 0.2}}


class Normed(nn.Sequential):
    """A network with BatchNorm, whose statistics differ between processes."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))


class Ends(Callback):
    """Record the network's weights when training ends."""

    weights = ""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        Ends.weights = fingerprint(*pl_module.network.state_dict().values())


def write_config(folder: Path) -> Path:
    path = folder / "averaged.yaml"
    callbacks = [{"class_path": "tests.commands.test_averaged_weights.Ends"}, AVERAGED]
    path.write_text(yaml.safe_dump({"trainer": {"max_epochs": 3, "callbacks": callbacks}, "name": "averaged"}))
    return path


def fit(folder: Path, *options: str) -> Path:
    """Train with a config and an overlay, and return the folder of the run."""
    configs = [f"--config={write_config(folder)}", f"--config={ROOT / 'configs/overlays/cpu.yaml'}"]
    main(["fit", *configs, *SETTINGS, f"--runs_dir={folder}", *options])
    return max((folder / "averaged").glob("fit-*"), key=lambda run: run.stat().st_mtime)


def network_states(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the averaged weights of a checkpoint, and those before averaging."""
    checkpoint = torch.load(path, weights_only=True)
    average, trained = (
        {name.removeprefix("network."): tensor for name, tensor in checkpoint[key].items() if "network." in name}
        for key in ("state_dict", "current_model_state")
    )
    assert not torch.equal(average["1.weight"], trained["1.weight"])
    return average, trained


def read_report(run: Path) -> Any:
    return json.loads((run / "test.json").read_text())


def test_commands_use_the_average(tmp_path: Path, capfd: Any) -> None:
    run = fit(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    best = read_report(run)["checkpoint"]
    assert read_report(run)["weights"] == fingerprint(*network_states(Path(best))[0].values())
    average, trained = network_states(last)
    assert Ends.weights == fingerprint(*average.values())  # so are the last figures
    torch.save(trained, tmp_path / "trained.pth")
    saved = f"--config={run / 'config.yaml'}"
    capfd.readouterr()
    for number, (path, state) in enumerate([(last, average), (tmp_path / "trained.pth", trained)]):
        main(["test", saved, f"--ckpt_path={path}"])
        assert read_report(tmp_path / "averaged" / f"test-{number}")["weights"] == fingerprint(*state.values())
    main(["export", saved, f"--ckpt_path={last}", "--formats=[pth]"])
    exported = torch.load(tmp_path / "averaged" / "export-0" / "network.pth", weights_only=True)
    assert all(torch.equal(average[name], tensor) for name, tensor in exported.items())
    out, err = capfd.readouterr()
    assert "left out: current_model_state.network.* (other weights that fit)" in out
    assert "callbacks used to create the checkpoint" not in err


def test_a_run_starts_from_the_average_and_is_resumed_only_with_the_callback(tmp_path: Path, capfd: Any) -> None:
    last = fit(tmp_path, "--test_after_fit=false") / "checkpoints" / "last.ckpt"
    average, _ = network_states(last)
    kept = ["--model.optimizer=SGD", "--model.optimizer.lr=0", "--test_after_fit=false"]
    new = fit(tmp_path, f"--ramp.init_from={last}", *kept) / "checkpoints" / "last.ckpt"
    started = torch.load(new, weights_only=True)["current_model_state"]  # the rate is 0
    assert torch.equal(started["network.1.weight"], average["1.weight"])
    longer = ["--trainer.max_epochs=4", f"--ckpt_path={last}", "--test_after_fit=false"]
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", *SETTINGS, f"--runs_dir={tmp_path}", *longer])
    assert "it holds averaged weights, and trainer.callbacks has no callbacks.AveragedWeights" in capfd.readouterr().err
    resumed = fit(tmp_path, *longer)
    assert int(torch.load(resumed / "checkpoints" / "last.ckpt")["averaging_state"]["n_averaged"]) == 11


def test_checkpoints_of_weights_alone_have_the_average(tmp_path: Path) -> None:
    both = fit(tmp_path, "--test_after_fit=false", "--name=averaged") / "checkpoints" / "last.ckpt"
    alone = fit(tmp_path, "--test_after_fit=false", "--checkpoint.save_weights_only=true") / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(alone, weights_only=True)
    assert "current_model_state" not in checkpoint
    assert torch.equal(checkpoint["state_dict"]["network.1.weight"], network_states(both)[0]["1.weight"])


def test_two_processes_validate_and_save_the_same_average(tmp_path: Path) -> None:
    """DistributedDataParallel gives all processes the buffers of the first before each batch of a validation."""
    script = tmp_path / "two.py"
    script.write_text(
        "import os, sys, torch\n"
        "from pytorch_lightning import Callback\n"
        "from cli import main\n"
        "class Save(Callback):\n"
        "    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):\n"
        f"        torch.save(pl_module.network.state_dict(), f'{tmp_path}/{{trainer.global_rank}}.pth')\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['two'] = sys.modules['__main__']\n"
        "    main(sys.argv[1:])\n"
    )
    arguments = [
        "fit", f"--config={write_config(tmp_path)}", *SETTINGS, f"--runs_dir={tmp_path}", "--test_after_fit=false",
        "--model.network=tests.commands.test_averaged_weights.Normed", "--trainer.devices=2", "--trainer.strategy=ddp",
        "--trainer.callbacks+={class_path: two.Save}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, check=True, timeout=240, capture_output=True,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    average = network_states(tmp_path / "averaged" / "fit-0" / "checkpoints" / "last.ckpt")[0]
    for rank in range(2):
        validated = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert all(torch.equal(average[name], tensor) for name, tensor in validated.items())
