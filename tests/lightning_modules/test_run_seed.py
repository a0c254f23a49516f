"""The seed of a run: the same in all processes, saved in checkpoints, and not affected by user code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from cli import main
from datamodules import ImageSet, InMemoryDataModule
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from tests.conftest import ROOT


class ToyData(InMemoryDataModule):
    """40 random images of ten classes."""

    def __init__(self, val_size: int = 0) -> None:
        super().__init__(4, 4, val_size, split_seed=0, drop_last=False, max_shift=1, flip=True)

    def read_train(self) -> ImageSet:
        images = torch.randint(256, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return ImageSet(images, torch.arange(40) % 10)

    read_test = read_train


class Seen(Callback):
    """Records the index of each training image, in order."""

    def __init__(self) -> None:
        self.index: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.index += batch[2].tolist()


class Reseed(Callback):
    """User code that sets torch's seed in every hook."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.manual_seed(5 + trainer.global_rank)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(6)

    def on_train_batch_start(self, *_: Any) -> None:
        torch.manual_seed(7)


def module() -> AdversarialClassifier:
    torch.manual_seed(0)
    return AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 10)), eps=0.3, attack=PGD(steps=2))


def fit(
    folder: Path, *callbacks: Callback, seed: int, ckpt_path: Path | None = None, **settings: Any
) -> tuple[AdversarialClassifier, list[int], Trainer]:
    trained, seen = module(), Seen()
    trainer = Trainer(
        **{"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False} | settings,
        default_root_dir=folder,
        accelerator="cpu",
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        callbacks=[*callbacks, seen],
    )
    torch.manual_seed(seed)
    trainer.fit(trained, datamodule=ToyData(), ckpt_path=ckpt_path)
    return trained, seen.index, trainer


def weights(module: AdversarialClassifier) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters())


def test_torchs_seed_set_by_user_code_changes_neither_order_nor_attacks(tmp_path: Path) -> None:
    plain, order, _ = fit(tmp_path, seed=1)
    reseeded, same_order, _ = fit(tmp_path, Reseed(), seed=1)
    other, other_order, _ = fit(tmp_path, seed=2)
    assert order == same_order
    assert torch.equal(weights(plain), weights(reseeded))
    assert order[:40] != order[40:]
    assert order != other_order
    assert (plain.run_seed, reseeded.run_seed, other.run_seed) == (1, 1, 2)


@pytest.mark.parametrize("at_step", [7, 10])
def test_a_resumed_run_keeps_the_seed_of_its_checkpoint(tmp_path: Path, at_step: int) -> None:
    save = ModelCheckpoint(tmp_path, every_n_train_steps=at_step, save_top_k=-1, filename="{step}")
    whole, order, _ = fit(tmp_path, save, seed=1)
    resumed, rest, _ = fit(tmp_path, seed=2, ckpt_path=tmp_path / f"step={at_step}.ckpt")
    assert resumed.run_seed == 1
    assert rest == order[4 * at_step :]
    assert torch.equal(weights(whole), weights(resumed))


def test_the_order_of_images_is_resumed_with_any_lightning_module(tmp_path: Path) -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 10)

        def training_step(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def order(seed: int, max_epochs: int, ckpt_path: Path | None = None) -> list[int]:
        seen = Seen()
        torch.manual_seed(seed)
        trainer = Trainer(
            max_epochs=max_epochs, logger=False, accelerator="cpu", callbacks=[seen], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Plain(), datamodule=ToyData(), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return seen.index

    whole = order(1, max_epochs=2)
    assert order(1, max_epochs=1) + order(2, max_epochs=2, ckpt_path=tmp_path / "1.ckpt") == whole


class SelfSeeded(nn.Sequential):
    """A custom network whose constructor sets torch's seed."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize(("option", "seeds"), [("4", {4}), ("false", {3})])
def test_the_seed_on_the_command_line_is_the_seed_of_the_run(tmp_path: Path, option: str, seeds: set[int]) -> None:
    main([
        "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--runs_dir={tmp_path}",
        "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--test_after_fit=false",
        "--trainer.enable_progress_bar=false", "--data.batch_size=4", "--images.num_images=0", "--ramp.phases=null",
        "--trainer.max_epochs=1",
        "--model.attack.steps=1", f"--seed_everything={option}",
        "--model.network=tests.lightning_modules.test_run_seed.SelfSeeded",
    ])  # fmt: skip
    assert {torch.load(file, weights_only=True)["run_seed"] for file in tmp_path.rglob("last.ckpt")} == seeds


def test_testing_a_checkpoint_does_not_use_its_seed(tmp_path: Path) -> None:
    _, _, trainer = fit(tmp_path, seed=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    tested = module()
    torch.manual_seed(3)
    tester = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    tester.test(tested, datamodule=ToyData(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert tested.run_seed == 3


def test_a_saved_seed_that_is_no_number_is_refused(tmp_path: Path) -> None:
    _, _, trainer = fit(tmp_path, seed=1, max_steps=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save(content | {"run_seed": "1"}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="run_seed must be a whole number, got '1'"):
        fit(tmp_path, seed=1, ckpt_path=tmp_path / "b.ckpt")


def test_processes_without_a_seed_share_the_images_and_leave_none_out(tmp_path: Path) -> None:
    """Processes start with different torch seeds, and user code sets others."""
    script = tmp_path / "two.py"
    script.write_text(
        "import json, os, sys\n"
        "import torch\n"
        "from tests.lightning_modules.test_run_seed import *\n"
        "torch.set_num_threads(1)\n"
        "seen, trained = Seen(), module()\n"
        "torch.seed()\n"
        "trainer = Trainer(max_epochs=2, accelerator='cpu', devices=2, strategy='ddp', logger=False,\n"
        "    callbacks=[Reseed(), seen], enable_progress_bar=False, enable_checkpointing=False)\n"
        "trainer.fit(trained, datamodule=ToyData())\n"
        f"path = os.path.join({str(tmp_path)!r}, f'{{trainer.global_rank}}.json')\n"
        "json.dump({'seed': trained.run_seed, 'seen': seen.index}, open(path, 'w'))\n"
    )
    subprocess.run([sys.executable, script], cwd=ROOT, env={**_environment(), "PYTHONPATH": str(ROOT)}, check=True)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["seed"] == ranks[1]["seed"]
    assert [len(rank["seen"]) for rank in ranks] == [40, 40]
    for epoch in (slice(0, 20), slice(20, 40)):
        assert sorted(ranks[0]["seen"][epoch] + ranks[1]["seen"][epoch]) == list(range(40))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PL_")} | {"OMP_NUM_THREADS": "1"}
