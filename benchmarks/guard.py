"""Time training steps with and without the collapse guard, in turn within one run.

Blocks of ten optimizer steps, of which one is measured, alternate with blocks without the guard, on the quickstart and
on `configs/cifar10/cpu_madry_8.yaml` (random images of CIFAR-10's shape, since time does not depend on them). Held-out
checks are off: `guard.check_share` is their share of the gradient evaluations.

    python -m benchmarks.guard --out OUT.json
"""

import argparse
import logging
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from benchmarks.record import Record, new_file
from benchmarks.timing import Times
from callbacks import CollapseGuard
from lightning_modules import AdversarialClassifier, CIFARClassifier, MNISTClassifier
from rampart.attacks import PGD
from rampart.data import TensorBatches
from rampart.networks import ResNet18

STEPS = 10
"""Steps per block, and from one measurement to the next."""

WARM_UP = 2
"""Blocks of each kind that are not timed."""


class GuardInTurn(CollapseGuard):
    """Guard that measures in every second block of steps.

    Attributes:
        times: Seconds of the processor in each block, which other processes hardly change.
    """

    def __init__(self) -> None:
        super().__init__(every_n_steps=STEPS, check_share=0.0)
        self.times = Times({"without": [], "with": []})
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a block, and let the guard measure its first step if it is one with the guard."""
        block = trainer.global_step // STEPS
        if trainer.global_step % STEPS == 0:
            now = time.process_time()
            if block > 2 * WARM_UP:
                self.times.seconds["with" if (block - 1) % 2 else "without"].append(now - self._start)
            self._start = now
        self._off = block % 2 == 0
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def measure(module: AdversarialClassifier, batches: TensorBatches, rounds: int) -> dict[str, Any]:
    """Train ``rounds`` blocks of each kind; return the ratio of times, and seconds per step."""
    guard = GuardInTurn()
    steps = 2 * (WARM_UP + rounds) * STEPS + 1
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, callbacks=[guard], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, batches)
    times = guard.times
    return {
        "with_over_without": times.ratio("with", "without"),
        "with_over_without_in_total": sum(times.seconds["with"]) / sum(times.seconds["without"]),
        "seconds_per_step": {name: times.median(name) / STEPS for name in times.seconds},
        "seconds": times.seconds,
    }


def make_batches(shape: tuple[int, int, int], batch_size: int) -> TensorBatches:
    """Return batches of random images."""
    images = torch.randint(256, (batch_size * 50, *shape), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(len(images)) % 10, batch_size, shuffle=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="blocks of ten steps, of each kind")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    record = Record(arguments.out, seed=0)
    mnist = MNISTClassifier(eps=0.1, attack=PGD(steps=5))
    cifar = CIFARClassifier(
        ResNet18(width=8), eps="8/255", attack=PGD(steps=3), optimizer=lambda weights: torch.optim.SGD(weights, 0.01)
    )
    results = {
        "quickstart, batch 32, PGD-5": measure(mnist, make_batches((1, 28, 28), 32), arguments.rounds),
        "cpu_madry_8, batch 64, PGD-3": measure(cifar, make_batches((3, 32, 32), 64), arguments.rounds),
    }
    record.show({"rounds": arguments.rounds, **results})


if __name__ == "__main__":
    main()
