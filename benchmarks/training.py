"""Time `fit` with PGD-5 on MNIST images against a bare loop of the same attack and update steps, in turn.

Both train the paper's network on the bundled digits, from the same DataModule, an epoch a turn. `fit` has all that
the command line gives it: epsilon ramp, TensorBoard, progress bar, metrics; no validation, which the loop has not.

    python benchmarks/training.py --out benchmarks/results/training.json
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

sys.path.insert(0, str(Path(__file__).parent.parent))

from timing import in_turn

from attacks import PGD
from callbacks import EpsilonRampCallback, Phase, RampartProgressBar
from datamodules import DigitsDataModule
from evaluation import provenance
from lightning_modules import MNISTClassifier
from networks import MNISTCNN

EPOCHS = 2
BATCH_SIZE = 128


def bare_loop(data: DigitsDataModule) -> None:
    """Attack and update steps, nothing else."""
    network, attack = MNISTCNN(), PGD(steps=5)
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(EPOCHS):
        for images, labels, _index in data.train_dataloader():
            adv = attack(network, images, labels, eps=0.4)
            optimizer.zero_grad()
            F.cross_entropy(network(adv), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def fit(data: DigitsDataModule, folder: str) -> None:
    """The same by way of Lightning."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder),
        callbacks=[EpsilonRampCallback(phases=(Phase(epochs=EPOCHS, end_eps=0.4),)), RampartProgressBar()],
    )
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar draws, unseen
        trainer.fit(MNISTClassifier(attack=PGD(steps=5)), data)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=BATCH_SIZE, val_size=0, max_shift=1)
    data.setup("fit")
    images = EPOCHS * len(data.train_dataloader()) * BATCH_SIZE
    with tempfile.TemporaryDirectory() as folder:
        times = in_turn({"bare loop": lambda: bare_loop(data), "fit": lambda: fit(data, folder)}, arguments.rounds)
    report = {
        "network": "MNISTCNN",
        "attack": "PGD-5",
        "batch_size": BATCH_SIZE,
        "rounds": arguments.rounds,
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
