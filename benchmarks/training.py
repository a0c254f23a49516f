"""Time `fit` with PGD-5 on MNIST images against a bare loop of the same attack and update steps, in turn.

Both train the paper's network on the bundled digits, from the same DataModule; after each epoch of `fit`, the bare loop
runs an epoch. `fit` has all that the command line gives it (epsilon ramp, TensorBoard, progress bar, metrics) except
validation and checkpoints, which the loop lacks.

    python -m benchmarks.training --out OUT.json
"""

import argparse
import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.record import Record, new_file
from benchmarks.timing import Times
from callbacks import EpsilonRampCallback, RampartProgressBar
from datamodules import DigitsDataModule
from lightning_modules import MNISTClassifier
from rampart.attacks import PGD
from rampart.networks import MNISTCNN
from rampart.schedules import Phase

BATCH_SIZE = 128


class BareLoopInTurn(Callback):
    """Run an epoch of bare attack and update steps after each epoch of `fit`.

    Attributes:
        times: Seconds of every epoch after the first; those of `fit` from one bare epoch's end to the next one's start.
    """

    def __init__(self) -> None:
        self.times = Times({"bare loop": [], "fit": []})
        self._network, self._attack = MNISTCNN(), PGD(steps=5)
        self._optimizer = torch.optim.Adam(self._network.parameters())
        self._resumed: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Train one epoch of the bare loop."""
        start = time.perf_counter()
        for images, labels, _index in trainer.datamodule.train_dataloader():  # type: ignore[attr-defined]
            adv = self._attack(self._network, images, labels, eps=0.4)
            self._optimizer.zero_grad()
            F.cross_entropy(self._network(adv), labels).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        end = time.perf_counter()
        if self._resumed is not None:
            self.times.seconds["fit"].append(start - self._resumed)
            self.times.seconds["bare loop"].append(end - start)
        self._resumed = end


def measure(rounds: int) -> dict[str, Any]:
    """Train ``1 + rounds`` epochs of each; return images per second and the ratio of times."""
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=BATCH_SIZE, val_size=0, max_shift=1)
    bare_loop = BareLoopInTurn()
    ramp = EpsilonRampCallback(phases=(Phase(epochs=1 + rounds, end_eps=0.4),))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1 + rounds,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder),
            callbacks=[ramp, RampartProgressBar(), bare_loop],
        )
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar, which is drawn all the same
            trainer.fit(MNISTClassifier(attack=PGD(steps=5)), data)
    times, images = bare_loop.times, trainer.num_training_batches * BATCH_SIZE
    return {
        "images_per_second": {name: images / times.median(name) for name in times.seconds},
        "fit_over_bare_loop": times.ratio("bare loop", "fit"),
        "seconds": times.seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="epochs of each")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    record = Record(arguments.out, seed=0)
    settings = {"network": "MNISTCNN", "attack": "PGD-5", "batch_size": BATCH_SIZE, "rounds": arguments.rounds}
    record.show(settings | measure(arguments.rounds))


if __name__ == "__main__":
    main()
