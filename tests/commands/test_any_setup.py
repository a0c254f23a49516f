"""Every command with a custom network, custom data, any logger, and without progress bar or checkpoints."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cli import main
from tests.conftest import ROOT

USER_CODE = '''
import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Data(LightningDataModule):
    """Ordinary loaders of seven images, which two processes can't share equally."""

    def loader(self):
        images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(7) % 3), batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, x):
        return self.layers(x)
'''

PGD_1 = "{class_path: rampart.attacks.PGD, init_args: {steps: 1}}"
ARGUMENTS = [
    "--data=rampart_setup_user.Data", "--model=AdversarialClassifier", "--model.network=rampart_setup_user.Net",
    "--model.eps=0.1", f"--model.attack={PGD_1}", f"--model.val_attack={PGD_1}",
    f"--model.test_attacks=[{{eps: 0.1, attack: {PGD_1}}}]", "--trainer.accelerator=cpu", "--curve.num_images=4",
]  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "fit": ["--trainer.max_epochs=2"],
    "validate": [],
    "test": [],
    "predict": [],
    "evaluate": [f"--attacks=[{PGD_1}]", "--eps=[0.1]"],
    "export": ["--image_shape=[1, 8, 8]", "--formats=[pth, safetensors]"],
}
SETUPS: dict[str, list[str]] = {
    "as it comes": [],
    "no progress bar": ["--trainer.enable_progress_bar=false"],
    "own progress bar": ["--trainer.callbacks=TQDMProgressBar", "--trainer.callbacks.refresh_rate=3"],
    "no checkpointing": ["--trainer.enable_checkpointing=false"],
    "barebones": ["--trainer.barebones=true"],
    "no logger": ["--trainer.logger=false"],
    "csv": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir={logs}"],
    "tensorboard": ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir={logs}"],
    "two loggers": [
        "--trainer.logger=[{class_path: CSVLogger, init_args: {save_dir: {logs}}}, "
        "{class_path: TensorBoardLogger, init_args: {save_dir: {logs}}}]"
    ],
}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with custom code and the weights of a custom network."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "rampart_setup_user.py").write_text(USER_CODE)
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save({f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "net.pth")
    return folder


def command_line(command: str, user: Path, runs: Path, *more: str) -> list[str]:
    weights = [] if command == "fit" else [f"--ckpt_path={user / 'net.pth'}"]
    more = tuple(argument.replace("{logs}", str(runs / "logs")) for argument in more)
    return [command, *ARGUMENTS, *COMMANDS[command], *weights, f"--runs_dir={runs}", *more]


def check_results(command: str, folder: Path, checkpoints: bool) -> None:
    """Check that the run's folder has all files that the command writes."""
    if command == "fit":
        assert (folder / "checkpoints" / "last.ckpt").is_file() == checkpoints
    if command in ("fit", "test"):
        report = json.loads((folder / "test.json").read_text())
        assert report["images"] == 7
        assert [row["name"] for row in report["results"]] == ["clean", "PGD-1 @ 0.1"]
        assert all(round(7 * row["accuracy"], 4) % 1 == 0 for row in report["results"])
        assert (folder / "robustness_curve.csv").is_file()
    if command == "predict":
        rows = list(csv.DictReader((folder / "predictions.csv").open()))
        assert [int(row["index"]) for row in rows] == list(range(7))
        assert [int(row["label"]) for row in rows] == [0, 1, 2, 0, 1, 2, 0]
    if command == "evaluate":
        assert json.loads((folder / "report.json").read_text())["images"] == 7
    if command == "export":
        assert {"network.pth", "network.safetensors"} <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("command", COMMANDS)
def test_results_are_complete(command: str, setup: str, user: Path, tmp_path: Path, capfd: Any) -> None:
    main(command_line(command, user, tmp_path, *SETUPS[setup]))
    check_results(command, tmp_path / "unnamed" / f"{command}-0", setup not in ("no checkpointing", "barebones"))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert ("accuracy (%)" in out) == (command in ("fit", "validate", "test", "evaluate"))


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_results_are_complete_with_two_processes(command: str, user: Path, tmp_path: Path) -> None:
    arguments = command_line(command, user, tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp")
    result = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments], cwd=user, capture_output=True, text=True, check=False,
        timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [folder.name for folder in (tmp_path / "unnamed").iterdir()] == [f"{command}-0"]
    check_results(command, tmp_path / "unnamed" / f"{command}-0", checkpoints=True)
