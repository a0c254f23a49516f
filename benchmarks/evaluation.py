"""Time the paper's evaluation, PGD with 200 steps of 0.005 at eps 0.4, the paper's way and Rampart's, in turn.

The paper's way is its loop on the network as published, weights' gradients and all, the images in one batch.
Rampart's is `test`: batches, no weights' gradients, and no attack on what is answered wrongly as it is. The second
column, `stop_when_fooled`, stops at the first iterate that fools: another, stronger measure at less cost.

    python -m benchmarks.evaluation --weights FILE --data-dir DIR --num-images 2000
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from benchmarks.as_published import PlainMNISTCNN, papers_loop
from benchmarks.timing import in_turn
from datamodules import DigitsDataModule, MNISTDataModule
from lightning_modules import MNISTClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.files import provenance
from rampart.files.weights import load_weights

EPS, STEP_SIZE, STEPS = 0.4, 0.005, 200


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="trained weights of the MNIST network")
    parser.add_argument("--data-dir", help="holds MNIST/raw; the 1,000 held-out bundled digits if left out")
    parser.add_argument("--num-images", type=int, help="the first of the test images; all if left out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = MNISTDataModule(arguments.data_dir) if arguments.data_dir else DigitsDataModule()
    data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    if arguments.num_images:
        loader.images, loader.labels = loader.images[: arguments.num_images], loader.labels[: arguments.num_images]
    images, labels = loader.images.float() / 255, loader.labels
    accuracies: dict[str, float] = {}

    def papers_way() -> None:
        torch.manual_seed(0)
        network = PlainMNISTCNN()
        load_weights(network, arguments.weights)
        start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
        adv = papers_loop(network, images, labels, EPS, STEP_SIZE, STEPS, start)
        with torch.no_grad():
            accuracies["paper's way"] = (network(adv).argmax(1) == labels).double().mean().item()

    def test(name: str, **settings: Any) -> None:
        torch.manual_seed(0)
        attack = NamedAttack(PGD(steps=STEPS, step_size=STEP_SIZE, **settings), EPS)
        module = MNISTClassifier(test_attacks=(attack,))
        load_weights(module.network, arguments.weights)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, inference_mode=False)
        (result,) = trainer.test(module, loader, verbose=False)
        accuracies[name] = result[f"test/robust_acc/{attack.name}"]

    runs = {
        "paper's way": papers_way,
        "test": lambda: test("test"),
        "test, stop_when_fooled": lambda: test("test, stop_when_fooled", stop_when_fooled=True),
    }
    times = in_turn(runs, arguments.rounds, warm_up=0)
    report = {
        "weights": Path(arguments.weights).name,
        "images": len(labels),
        "attack": "PGD-200, 0.005 a step, eps 0.4",
        "seed": 0,
        "seconds": times.seconds,
        "robust_accuracy": accuracies,
        "speed_over_papers_way": {name: times.ratio("paper's way", name) for name in runs},
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
