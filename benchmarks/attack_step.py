"""Time one PGD step of Rampart against its floor, in turn, and print the ratio.

The floor is what no attack can do without: one forward pass and the gradient with respect to the images.

    python benchmarks/attack_step.py [--batch-size 128] [--rounds 30]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from attacks import PGD
from evaluation import provenance
from networks import MNISTCNN

STEPS = 10


def floor(network: MNISTCNN, images: Tensor, labels: Tensor) -> None:
    """STEPS times a forward pass and the gradient with respect to the images, nothing else."""
    for _ in range(STEPS):
        inputs = images.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(inputs), labels), inputs)


def paper(network: MNISTCNN, images: Tensor, labels: Tensor) -> None:
    """STEPS times a step as in the paper's loop, which computes the weights' gradients too."""
    adv = images
    for _ in range(STEPS):
        adv = adv.detach().requires_grad_()
        network.zero_grad()
        F.cross_entropy(network(adv), labels).backward()  # type: ignore[no-untyped-call]
        assert adv.grad is not None
        adv = (images + (adv + 0.01 * adv.grad.sign() - images).clamp(-0.4, 0.4)).clamp(0, 1)


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = MNISTCNN()
    images, labels = torch.rand(arguments.batch_size, 1, 28, 28), torch.randint(10, (arguments.batch_size,))
    attack = PGD(steps=STEPS, step_size=0.01)
    runs: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(network, images, labels),
        "rampart": lambda: attack(network, images, labels, eps=0.4),
        "paper": lambda: paper(network, images, labels),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 2):  # the first two warm up
        for name, run in runs.items():
            times[name].append(seconds(run))  # type: ignore[arg-type]
    kept = {name: values[2:] for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(kept[name], kept["floor"], strict=True))
        for name in ("rampart", "paper")
    }
    report = {
        "network": "MNISTCNN",
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "milliseconds_per_step": {n: round(1000 * statistics.median(v) / STEPS, 3) for n, v in kept.items()},
        "median_ratio_to_floor": {name: round(ratio, 3) for name, ratio in ratios.items()},
        **provenance(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
