"""Program that trains networks that collapse and are recovered, as one process or as one of several."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import callbacks.recovery
from callbacks.outputs import run_folder
from callbacks.recovery import Recovery
from callbacks.run_events import RunEvents
from cli import main
from datamodules.in_memory import ImageSet, InMemoryDataModule
from rampart.schedules import AdaptiveRamp
from tests.cluster.kills import KillCallback

GLOBAL_BATCH = 16
EPOCHS = 14
COLLAPSE = 43
"""Zero-based optimizer step at which all units of a planted collapse are dead."""

HERE = "tests.cluster.recovery_commands"
PGD = "{class_path: rampart.attacks.PGD, init_args: {steps: 1}}"
FIT = [
    "fit", "--name=run", "--seed_everything=0", "--test_after_fit=false", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0", f"--trainer.max_epochs={EPOCHS}",
    "--trainer.logger=false", "--trainer.check_val_every_n_epoch=7", "--images.num_images=0", "--curve.num_images=0",
    f"--data={HERE}.Quadrants", "--data.val_size=16", "--model=AdversarialClassifier", f"--model.network={HERE}.Layers",
    "--model.eps=0.3", f"--model.attack={PGD}", f"--model.val_attack={PGD}", "--model.optimizer=SGD",
    "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9", f"--trainer.callbacks={HERE}.Collapse",
    "--guard.action=recover", "--guard.every_n_steps=2", "--guard.grace_steps=20",
]  # fmt: skip
UNPLANTED = "--trainer.callbacks.at=null"
ONE_CYCLE = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]
BY_EPOCH = [
    "--model.lr_scheduler=MultiStepLR", "--model.lr_scheduler.milestones=[6, 12]", "--model.lr_interval=epoch",
]  # fmt: skip
FITS: dict[str, list[str]] = {
    "iat": [
        "--ramp.phases=[{epochs: 2, end_eps: 0}, {epochs: 8, start_eps: 0, end_eps: 0.3}, {epochs: 4, end_eps: 0.3}]",
        *BY_EPOCH,
    ],
    "naive": [UNPLANTED, "--model.eps=0.4", "--model.optimizer.lr=0.3", "--guard.check_share=0.3"],
    "adaptive": ["--ramp.adaptive.lr_waits=true", *ONE_CYCLE, "--guard.check_share=0.3"],
    "adaptive, no collapse": ["--ramp.adaptive=true", *BY_EPOCH, UNPLANTED],
    "accumulated": [
        f"--model.network={HERE}.Normed", "--trainer.sync_batchnorm=true", "--trainer.accumulate_grad_batches=2",
        f"--trainer.max_epochs={2 * EPOCHS}", "--ramp.adaptive=true", *ONE_CYCLE,
        "--trainer.callbacks+={class_path: callbacks.AveragedWeights, init_args: {decay: 0.9}}",
    ],
}  # fmt: skip
"""Options of trainings by name."""


def shorten(set_value: Callable[[Any, str, Any], None] = setattr) -> None:
    """Copy healthy states more often, and let eps rise faster, so that a short run can recover."""
    set_value(callbacks.recovery, "EVERY", 10)
    set_value(AdaptiveRamp, "LEAST_STEPS", 20)


class Quadrants(InMemoryDataModule):
    """Images of 8 x 8 noisy pixels with one bright quadrant, which is the class."""

    num_classes = 4

    def read_train(self) -> ImageSet:
        labels = torch.arange(11 * GLOBAL_BATCH) % 4
        images = torch.randint(0, 60, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(0))
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 190
        return ImageSet(images.to(torch.uint8), labels)

    def read_test(self) -> ImageSet:
        return self.read_train()


class Layers(nn.Module):
    """A small network in float64, so that rounding changes no sign of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12).double(), nn.Linear(12, 4).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(nn.functional.avg_pool2d(images, 2).flatten(1)).relu())
        return logits


class Normed(Layers):
    """A small network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1).double()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.norm(images))


class Collapse(KillCallback):
    """Make all units of the first layer dead before a step, and write the settings of each optimizer step to a file.

    It kills at two more moments: ``recovered``, before the event is written, and ``written``, after it.

    Args:
        at: Zero-based optimizer step; None: never.
    """

    def __init__(self, at: int | None = COLLAPSE) -> None:
        super().__init__()
        self.at = at
        shorten()
        if self.moment == "recovered":
            self._wrap(Recovery, "recover", after=True)
        if self.moment == "written":
            self._wrap(RunEvents, "add", after=True)

    def on_train_batch_start(self, *arguments: Any) -> None:
        trainer, module = arguments[:2]
        if trainer.global_step == self.at:
            with torch.no_grad():
                module.network.first.weight.zero_()
                module.network.first.bias.fill_(-1)
        super().on_train_batch_start()

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        trainer, module, optimizer = arguments
        values = [trainer.global_step, module.eps, module.attack.steps, optimizer.param_groups[0]["lr"]]
        with (run_folder(trainer) / f"steps-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        super().on_before_optimizer_step()


def read_steps(folder: Path, rank: int = 0) -> dict[int, list[float]]:
    """Return eps, attack steps and learning rate by optimizer step; a step that was repeated had the same."""
    steps: dict[int, list[float]] = {}
    for line in (folder / f"run/fit-0/steps-{rank}.jsonl").read_text().splitlines():
        step, *values = json.loads(line)
        assert steps.setdefault(step, values) == values
    return steps


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run's file."""
    file = folder / "run/fit-0/events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_commands(folder: Path, processes: int, names: list[str]) -> None:
    """Train into ``folder/NAME``."""
    launched = [f"--trainer.devices={processes}", f"--trainer.strategy={'auto' if processes == 1 else 'ddp'}"]
    for name in names:
        batch_size = f"--data.batch_size={GLOBAL_BATCH // processes}"
        main([*FIT, *FITS[name], batch_size, *launched, f"--runs_dir={folder / name}"])


if __name__ == "__main__":
    path, number, chosen = json.loads(sys.argv[1])
    run_commands(Path(path), number, chosen)
