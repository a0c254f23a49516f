"""Time the paper's evaluation, PGD with 200 steps of 0.005 at eps 0.4, in the paper's way and in Rampart's, in turn.

The paper's way is its loop on the network as published, in one batch, with gradients of the weights too. Rampart's way
is `test`: in batches, without gradients of the weights, and misclassified clean images are not attacked. With
`stop_when_fooled`, the third way, an attack stops at the first iterate that fools: a stronger measure at less cost.

    python -m benchmarks.evaluation --weights FILE --data-dir DIR --num-images 2000
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from benchmarks.as_published import PlainMNISTCNN, papers_loop
from benchmarks.record import Record, describe_file, new_file
from benchmarks.timing import time_in_turn
from datamodules import DigitsDataModule, MNISTDataModule
from lightning_modules import MNISTClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.data import TensorBatches
from rampart.files import load_weights
from rampart.kernels import full_float32

EPS, STEP_SIZE, STEPS = 0.4, 0.005, 200


def load_test_images(data_dir: str | None, num_images: int | None) -> TensorBatches:
    """Return batches of the first test images of MNIST, or of the bundled digits if no folder is given."""
    data = MNISTDataModule(data_dir) if data_dir else DigitsDataModule()
    data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    return TensorBatches(loader.images[:num_images], loader.labels[:num_images], loader.batch_size)


def evaluate_papers_way(weights: Path, loader: TensorBatches) -> float:
    """Return robust accuracy, in [0, 1], in the paper's way."""
    torch.manual_seed(0)
    images, labels = loader.images.float() / 255, loader.labels
    network = PlainMNISTCNN()
    load_weights(network, weights)
    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    adv = papers_loop(network, images, labels, EPS, STEP_SIZE, STEPS, start)
    with torch.no_grad():
        return float((network(adv).argmax(1) == labels).double().mean())


def evaluate_by_test(weights: Path, loader: TensorBatches, stop_when_fooled: bool) -> float:
    """Return robust accuracy, in [0, 1], by Lightning's test."""
    torch.manual_seed(0)
    attack = NamedAttack(PGD(steps=STEPS, step_size=STEP_SIZE, stop_when_fooled=stop_when_fooled), EPS)
    module = MNISTClassifier(test_attacks=(attack,))
    load_weights(module.network, weights)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, inference_mode=False)
    (result,) = trainer.test(module, loader, verbose=False)
    return float(result[f"test/robust_acc/{attack.name}"])


def measure(weights: Path, loader: TensorBatches, rounds: int) -> dict[str, Any]:
    """Return seconds, robust accuracy and speed, by way."""
    accuracies: dict[str, float] = {}

    def keep(name: str, run: Callable[[], float]) -> None:
        accuracies[name] = run()

    ways = {
        "paper's way": partial(evaluate_papers_way, weights, loader),
        "test": partial(evaluate_by_test, weights, loader, stop_when_fooled=False),
        "test, stop_when_fooled": partial(evaluate_by_test, weights, loader, stop_when_fooled=True),
    }
    times = time_in_turn({name: partial(keep, name, run) for name, run in ways.items()}, rounds, warm_up=0)
    return {
        "seconds": times.seconds,
        "robust_accuracy": accuracies,
        "speed_over_papers_way": {name: times.ratio("paper's way", name) for name in ways},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="trained weights of the MNIST network")
    parser.add_argument("--data-dir", help="folder with MNIST/raw; the 1,000 bundled test digits if left out")
    parser.add_argument("--num-images", type=int, help="number of test images, from the first on; all if left out")
    parser.add_argument("--rounds", type=int, default=1, help="number of timed runs of each way")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    loader = load_test_images(arguments.data_dir, arguments.num_images)
    with full_float32("cpu"):
        record = Record(arguments.out, seed=0)
        result = measure(arguments.weights, loader, arguments.rounds)
    settings = {"images": len(loader.labels), "attack": f"PGD-{STEPS}, step size {STEP_SIZE}, eps {EPS}"}
    record.show(describe_file(arguments.weights) | settings | result)


if __name__ == "__main__":
    main()
