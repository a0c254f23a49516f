"""Time contestants in turn, so that other work on the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

PEAK_SIZE = 2048


@dataclass(frozen=True)
class Times:
    """Wall times of contestants, ``seconds[name][round]``."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median seconds of one run."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median, over rounds, of the time of ``name`` divided by that of ``other`` in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def time_in_turn(runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> Times:
    """Run all contestants once per round, A B C A B C, and keep the rounds after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return Times(seconds)


def make_matrix_product() -> Callable[[], object]:
    """Return a function that computes one large matrix product, ``2 PEAK_SIZE^3`` floating-point operations."""
    a, b, out = (torch.rand(PEAK_SIZE, PEAK_SIZE) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)
