"""Runs that are killed at random moments and resumed end bit-equal to the uninterrupted run."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cli import main
from datamodules import DigitsDataModule
from rampart.files.weight_files import read_checkpoint

KILLS = int(os.environ.get("RAMPART_KILLS", "2"))
SEED = int(os.environ.get("RAMPART_CHAOS_SEED", "0"))


class Tiny(nn.Module):
    """A classifier with small checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(49, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(nn.functional.avg_pool2d(images, 4).flatten(1))
        return logits


class Dropping(Tiny):
    """A network with dropout, which uses random numbers in training."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.2, self.training))


class Shuffled(DigitsDataModule):
    """The digits in an ordinary loader, with order and noise from torch's global generator."""

    def train_dataloader(self) -> Any:
        images, labels = self._sets["train"]
        return DataLoader(TensorDataset(images, labels), self.batch_size, shuffle=True, collate_fn=_with_noise)


def _with_noise(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in batch]) / 255
    return (images + 0.1 * torch.rand_like(images)).clamp(0, 1), torch.stack([label for _, label in batch])


class Killed(BaseException):
    """Raised to stop a run; nothing catches it, so no more is saved than after SIGKILL."""


class Killer(Callback):
    """Raise Killed at the n-th hook that is called."""

    after: int | None = None

    def __init__(self) -> None:
        self.moments = 0

    def _moment(self, *_: Any, **__: Any) -> None:
        self.moments += 1
        if self.moments == Killer.after:
            raise Killed

    on_train_epoch_start = on_train_batch_start = on_before_optimizer_step = _moment
    on_train_batch_end = on_validation_start = on_validation_end = on_train_epoch_end = _moment


COMMON = [
    "fit", "--seed_everything=0", "--name=run", "--test_after_fit=false", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.limit_train_batches=6",
    "--trainer.max_epochs=8", "--trainer.callbacks=tests.commands.test_chaos.Killer", "--curve.num_images=0",
    "--images.num_images=0", "--data=DigitsDataModule", "--data.batch_size=8", "--data.val_size=16",
    "--data.max_shift=1", "--model=AdversarialClassifier", "--model.network=tests.commands.test_chaos.Tiny",
    "--model.eps=0.4", "--model.attack=rampart.attacks.PGD", "--model.attack.steps=1",
    "--model.val_attack=rampart.attacks.PGD",
    "--model.val_attack.steps=1", "--ramp.phases=[{epochs: 8, start_eps: 0, end_eps: 0.4}]",
]  # fmt: skip
ONE_CYCLE = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]
VARIANTS = {
    "by epochs": [],
    "every step": ["--checkpoint.every_n_train_steps=1", *ONE_CYCLE, "--model.lr_scheduler.total_steps=48"],
    "every second": ["--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=2"],
    "plateau": [
        "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, "
        "init_args: {mode: max, patience: 0}}",
        "--model.lr_monitor=val/clean_acc",
    ],
    "no monitor": ["--checkpoint.every_n_train_steps=2", "--checkpoint.monitor=null"],
    "every third": ["--checkpoint.every_n_train_steps=3", *ONE_CYCLE, "--model.lr_scheduler.total_steps=48"],
    "by the clock": ["--checkpoint.last_every_minutes=1e-9", "--trainer.accumulate_grad_batches=2"],
    "accumulating": [
        "--checkpoint.every_n_train_steps=3", "--trainer.accumulate_grad_batches=2", "--model.optimizer=SGD",
        "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9", *ONE_CYCLE, "--model.lr_scheduler.total_steps=24",
    ],
    "dropout and shuffled loaders": [
        "--data=tests.commands.test_chaos.Shuffled", "--model.network=tests.commands.test_chaos.Dropping",
        "--checkpoint.every_n_train_steps=4",
    ],
    "averaged weights": [
        "--trainer.callbacks+={class_path: callbacks.AveragedWeights, init_args: {decay: 0.9, start: 0.3}}",
        "--checkpoint.every_n_train_steps=1", "--trainer.val_check_interval=3",
    ],
    "by steps": [
        "--trainer.max_epochs=-1", "--trainer.max_steps=45", "--checkpoint.every_n_train_steps=4",
        "--ramp.phases=[{train_steps: 45, start_eps: 0, end_eps: 0.4}]",
    ],
}  # fmt: skip


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: ``last.ckpt`` of the newest run that has one."""
    runs = sorted((folder / "run").glob("fit-*"), key=lambda run: int(run.name.split("-")[1]), reverse=True)
    return next((run / "checkpoints/last.ckpt" for run in runs if (run / "checkpoints/last.ckpt").exists()), None)


def run(folder: Path, arguments: list[str], kill_after: int | None = None) -> bool:
    """Start or resume a run; return True if it was not killed."""
    Killer.after = kill_after
    last = newest(folder)
    resume = [] if last is None else [f"--ckpt_path={last}"]
    try:
        main([*COMMON, f"--runs_dir={folder}", *arguments, *resume])
    except Killed:
        return False
    return True


def read_last(folder: Path) -> dict[str, Any]:
    last = newest(folder)
    assert last is not None
    return read_checkpoint(last)


def read_best(checkpoint: dict[str, Any]) -> Any:
    """Return the best score and the name of its file; without a monitored metric, the name of the last file."""
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("RunCheckpoint"))
    return state["best_model_score"], Path(state["best_model_path"]).name


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_and_resumed_run_ends_bit_equal_to_the_uninterrupted_run(tmp_path: Path, variant: str) -> None:
    whole, broken, chance = tmp_path / "whole", tmp_path / "broken", random.Random(f"{variant} {SEED}")  # noqa: S311
    assert run(whole, VARIANTS[variant])
    kills, longest = 0, max(28, 180 // KILLS)
    while kills < KILLS and not run(broken, VARIANTS[variant], kill_after=chance.randint(1, longest)):
        kills += 1
        for file in broken.rglob("*.ckpt"):
            read_checkpoint(file)
    if kills == KILLS:
        assert run(broken, VARIANTS[variant])
    one, other = read_last(whole), read_last(broken)
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(one[key], other[key], key)
    assert_equal(one.get("current_model_state"), other.get("current_model_state"), "trained weights")
    counts = [checkpoint["loops"]["fit_loop"]["epoch_progress"] for checkpoint in (one, other)]
    assert counts[0] == counts[1]
    assert read_best(one) == read_best(other)


def test_callbacks_start_an_epoch_that_is_resumed_halfway(tmp_path: Path) -> None:
    callbacks = "--trainer.callbacks+={class_path: pytorch_lightning.callbacks."
    arguments = [
        f"{callbacks}GradientAccumulationScheduler, init_args: {{scheduling: {{0: 3, 1: 2}}}}}}",
        f"{callbacks}StochasticWeightAveraging, init_args: {{swa_lrs: 0.01, swa_epoch_start: 1}}}}",
        "--checkpoint.every_n_train_steps=1", "--trainer.max_epochs=3",
        "--ramp.phases=[{epochs: 3, start_eps: 0, end_eps: 0.4}]",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, arguments)
    # Killed within the first epoch, and within the second, which averages weights.
    assert [run(broken, arguments, kill_after=moments) for moments in (13, 26, None)] == [False, False, True]
    one, other = read_last(whole), read_last(broken)
    for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(one[key], other[key], key)
    averages = [checkpoint["callbacks"]["StochasticWeightAveraging"] for checkpoint in (one, other)]
    assert_equal(*averages)
