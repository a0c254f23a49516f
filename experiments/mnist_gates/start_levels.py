"""Compare PGD from random points of the ball with PGD from mid-gray, on MNIST weights.

    python -m experiments.mnist_gates.start_levels OUT.json NAME=FILE ANOTHER=FILE --data-dir DIR

How many of the first test images stand after so many steps, each attack by itself, its last iterate. Steps shrink
linearly from the relative step size that does best from there. For the start itself, the share of pixels that have a
gradient there: more than a thousandth of the image's largest.
"""

import argparse
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.worst_case import images_of
from rampart.attacks import PGD, AtImage, Level
from rampart.attacks.input_gradient import loss_gradient
from rampart.files import provenance
from rampart.files.weights import load_weights
from rampart.networks import MNISTCNN

ATTACKS = {
    "random point": PGD(relative_step_size=0.5, step_schedule="linear"),
    "the image": PGD(relative_step_size=0.5, step_schedule="linear", start=AtImage()),
    "mid-gray": PGD(relative_step_size=0.15, step_schedule="linear", start=Level(0.43, 0.57)),
}
STEPS = (1, 3, 10, 40, 200)


def main() -> None:
    """Attack, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("weights", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.4)
    arguments = parser.parse_args()
    images, labels = images_of(arguments.data_dir, "test", arguments.num_images)
    rows = []
    for given in arguments.weights:
        name, _, file = given.partition("=")
        network = MNISTCNN().eval()
        load_weights(network, file)
        for start, attack in ATTACKS.items():
            begin = replace(attack, steps=0)(
                network, images, labels, arguments.eps, generator=torch.Generator().manual_seed(0)
            )
            share = pixels_with_gradient(network, begin, labels)
            rows.append({"weights": name, "start": start, "pixels_with_gradient": round(share, 4)})
            print(json.dumps(rows[-1]), flush=True)
            for steps in STEPS:
                stands = 0
                generator = torch.Generator().manual_seed(0)
                tried = replace(attack, steps=steps)
                for batch in torch.split(torch.arange(len(labels)), 250):
                    adv = tried(network, images[batch], labels[batch], arguments.eps, generator=generator)
                    with torch.no_grad():
                        right = network(images[batch]).argmax(1) == labels[batch]
                        stands += int((right & (network(adv).argmax(1) == labels[batch])).sum())
                rows.append({"weights": name, "start": start, "steps": steps, "stand": stands})
                print(json.dumps(rows[-1]), flush=True)
    sums = {given.partition("=")[0]: hashlib.sha256(Path(given.partition("=")[2]).read_bytes()).hexdigest()
            for given in arguments.weights}  # fmt: skip
    settings = {"eps": arguments.eps, "images": len(labels), "split": "test", "seed": 0, "sha256": sums}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(settings | {"rows": rows} | provenance(), indent=2) + "\n")


def pixels_with_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of all pixels whose gradient exceeds a thousandth of the largest of their image."""
    sizes = []
    for batch in torch.split(torch.arange(len(labels)), 250):
        loss = partial(F.cross_entropy, target=labels[batch], reduction="none")
        sizes.append(loss_gradient(network, images[batch], loss)[2].abs().flatten(1))
    grad = torch.cat(sizes)
    return float((grad > 1e-3 * grad.amax(1, keepdim=True)).float().mean())


if __name__ == "__main__":
    main()
