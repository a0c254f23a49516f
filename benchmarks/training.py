"""Time `fit` with PGD-5 on MNIST images against a bare loop of the same attack and update steps, in turn.

Both train the paper's network on the bundled digits, from the same DataModule; after each epoch of `fit` an epoch of
the bare loop runs. `fit` has all that the command line gives it: epsilon ramp, TensorBoard, progress bar, metrics;
no validation and no checkpoints, which the loop has not.

    python -m benchmarks.training --out benchmarks/results/training.json
"""

import argparse
import contextlib
import io
import json
import logging
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.timing import Times
from callbacks import EpsilonRampCallback, RampartProgressBar
from datamodules import DigitsDataModule
from lightning_modules import MNISTClassifier
from rampart.attacks import PGD
from rampart.files import provenance
from rampart.networks import MNISTCNN
from rampart.schedules import Phase

BATCH_SIZE = 128


class BareLoopInTurn(Callback):
    """After each epoch of `fit`, one of attack and update steps and nothing else.

    Attributes:
        times: Seconds of every epoch after the first, of `fit` from one bare epoch's end to the next one's start.
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


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="epochs of each")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=BATCH_SIZE, val_size=0, max_shift=1)
    bare_loop = BareLoopInTurn()
    with tempfile.TemporaryDirectory() as folder:
        epochs = 1 + arguments.rounds
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder),
            callbacks=[
                EpsilonRampCallback(phases=(Phase(epochs=epochs, end_eps=0.4),)),
                RampartProgressBar(),
                bare_loop,
            ],
        )
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar draws, unseen
            trainer.fit(MNISTClassifier(attack=PGD(steps=5)), data)
    times = bare_loop.times
    images = trainer.num_training_batches * BATCH_SIZE
    report = {
        "network": "MNISTCNN",
        "attack": "PGD-5",
        "batch_size": BATCH_SIZE,
        "rounds": arguments.rounds,
        "seed": 0,
        "images_per_second": {name: images / times.median(name) for name in times.seconds},
        "fit_over_bare_loop": times.ratio("bare loop", "fit"),
        "seconds": times.seconds,
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
