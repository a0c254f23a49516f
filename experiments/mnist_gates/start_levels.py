"""Compare PGD from random points of the ball with PGD from the image and from mid-gray, on MNIST weights.

    python -m experiments.mnist_gates.start_levels OUT.json NAME=FILE ANOTHER=FILE --data-dir DIR

Count the first test images that are robust after a number of steps, for each attack alone, at its last iterate. Steps
shrink linearly from the relative step size that does best from that start. At each start, also measure the share of
pixels whose gradient exceeds a thousandth of the image's largest.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.mnist import load_first_images, load_trained
from benchmarks.record import Record, hash_file, new_file
from rampart.attacks import PGD, AtImage, Level
from rampart.attacks.input_gradient import loss_gradient
from rampart.evaluation import robust_mask
from rampart.networks import MNISTCNN

ATTACKS = {
    "random point": PGD(relative_step_size=0.5, step_schedule="linear"),
    "the image": PGD(relative_step_size=0.5, step_schedule="linear", start=AtImage()),
    "mid-gray": PGD(relative_step_size=0.15, step_schedule="linear", start=Level(0.43, 0.57)),
}
STEPS = (1, 3, 10, 40, 200)
BATCH_SIZE = 250


def compare_starts(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Iterator[dict[str, Any]]:
    """Yield the share of pixels with a gradient at each start, and the number of robust images after each attack."""
    for start, attack in ATTACKS.items():
        generator = torch.Generator().manual_seed(0)
        begin = replace(attack, steps=0)(network, images, labels, eps, generator=generator)
        yield {"start": start, "pixels_with_gradient": round(measure_pixels_with_gradient(network, begin, labels), 4)}
        for steps in STEPS:
            generator = torch.Generator().manual_seed(0)
            attack = replace(attack, steps=steps)
            robust = sum(
                int(robust_mask(network, *batch, attack, eps, generator).sum()) for batch in _batches(images, labels)
            )
            yield {"start": start, "steps": steps, "robust": robust}


def measure_pixels_with_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of all pixels whose gradient exceeds a thousandth of the largest in their image."""
    sizes = []
    for batch, targets in _batches(images, labels):
        loss = partial(F.cross_entropy, target=targets, reduction="none")
        sizes.append(loss_gradient(network, batch, loss)[2].abs().flatten(1))
    grad = torch.cat(sizes)
    return float((grad > 1e-3 * grad.amax(1, keepdim=True)).float().mean())


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Attack, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=new_file, help="JSON file to write")
    parser.add_argument("weights", nargs="+", metavar="NAME=FILE", help="weights, with a name for the output")
    parser.add_argument("--data-dir", required=True, help="folder with MNIST/raw")
    parser.add_argument("--num-images", type=int, default=1000, help="number of test images, from the first on")
    parser.add_argument("--eps", type=float, default=0.4, help="radius in l-inf, pixel scale")
    arguments = parser.parse_args(argv)
    if unnamed := [given for given in arguments.weights if "=" not in given]:
        parser.error(f"weights must be NAME=FILE, got {unnamed[0]}")
    files = {name: Path(file) for name, _, file in (given.partition("=") for given in arguments.weights)}
    images, labels = load_first_images(arguments.data_dir, "test", arguments.num_images)
    record = Record(arguments.out, seed=0)
    rows = []
    for name, file in files.items():
        for row in compare_starts(load_trained(MNISTCNN(), file), images, labels, arguments.eps):
            rows.append({"weights": name} | row)
            print(json.dumps(rows[-1]), flush=True)
    hashes = {name: hash_file(file) for name, file in files.items()}
    settings = {"eps": arguments.eps, "images": len(labels), "split": "test", "sha256": hashes}
    record.write(settings | {"rows": rows})


if __name__ == "__main__":
    main()
