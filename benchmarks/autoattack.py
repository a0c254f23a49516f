"""Time AutoAttack's standard version (Croce and Hein 2020), Rampart's and pyautoattack's, in turn, attack by attack.

Both run the same attacks on the same images and weights: APGD-CE, targeted APGD, targeted FAB, Square, each on the
images that are still robust. Two things differ in Rampart: an image leaves a run at the step that fools it, and FAB
stops at the first adversarial image within eps, where the published code searches for a nearer one. pyautoattack
attacks the network as papers write it; with `--same-network` it also attacks Rampart's form of the network, which
separates the attacks' speed from the network's.

    python -m benchmarks.autoattack FILE --data-dir DIR --num-images 250 --rounds 3 --out OUT.json
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.as_published import PlainMNISTCNN
from benchmarks.mnist import load_first_images, load_trained
from benchmarks.record import Record, describe_file, new_file
from benchmarks.timing import Times, time_in_turn
from rampart.evaluation import WorstCaseSearch, in_memory, preset_attacks
from rampart.kernels import full_float32
from rampart.networks import MNISTCNN

BATCH_SIZE = 250
PEER = "pyautoattack"


class PeerLog(logging.Handler):
    """Collect pyautoattack's log: robust accuracy after each attack, seconds so far, warnings."""

    AFTER = re.compile(r"robust accuracy after (\S+): ([\d.]+)% \(total time ([\d.]+) s\)")

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.num_images = num_images
        self.stages: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.so_far = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Parse a line of the log."""
        line = record.getMessage()
        if record.levelno >= logging.WARNING and line not in self.warnings:
            self.warnings.append(line)
        if match := self.AFTER.search(line):
            attack, percent, seconds = match[1], float(match[2]), float(match[3])
            robust = round(percent / 100 * self.num_images)
            self.stages.append(stage(attack, robust, seconds - self.so_far))
            self.so_far = seconds


@dataclass(frozen=True)
class Result:
    """Result of one evaluation.

    Attributes:
        robust: Number of images that are correctly classified clean and under all attacks.
        stages: One row per attack, from ``stage``.
        warnings: Warnings of the evaluation, one line each.
    """

    robust: int
    stages: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def stage(attack: str, robust: int, seconds: float) -> dict[str, Any]:
    """Return an attack's row: its name, the number of robust images after it, and its wall time in seconds."""
    return {"attack": attack, "robust": robust, "seconds": round(seconds, 1)}


def run_rampart(network: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Result:
    """Run Rampart's AutoAttack."""
    attacks = preset_attacks("autoattack")
    search = WorstCaseSearch(network, in_memory(images, labels), attacks, [eps], None, BATCH_SIZE, seed)
    found = search.run()
    return Result(found.count_robust(eps), [stage(s.attack, s.robust, s.seconds) for s in found.stages])


def run_pyautoattack(network: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Result:
    """Run pyautoattack's standard version."""
    from pyautoattack import AutoAttack

    log = PeerLog(len(labels))
    attack = AutoAttack(network, eps=eps, seed=seed)
    attack.logger.setLevel(logging.DEBUG)
    attack.logger.addHandler(log)
    _, predictions = attack.run_standard_evaluation(images, labels, batch_size=BATCH_SIZE)
    attack.logger.removeHandler(log)
    return Result(int((predictions == labels).sum()), log.stages, log.warnings)


def build_contestants(arguments: argparse.Namespace, images: Tensor, labels: Tensor) -> dict[str, Callable[[], Result]]:
    """Return the evaluations by name; pyautoattack's only if it is installed."""
    settings = {"images": images, "labels": labels, "eps": arguments.eps, "seed": arguments.seed}
    ours = load_trained(MNISTCNN(), arguments.weights)
    runs: dict[str, Callable[[], Result]] = {"rampart": partial(run_rampart, ours, **settings)}
    if find_spec(PEER) is None:
        print(f"left out: {PEER} (not installed; pip install -e '.[bench]')", file=sys.stderr)
        return runs
    plain = load_trained(PlainMNISTCNN(), arguments.weights)
    runs = {PEER: partial(run_pyautoattack, plain, **settings)} | runs
    if arguments.same_network:
        runs[f"{PEER}, Rampart's network"] = partial(run_pyautoattack, ours, **settings)
    return runs


def build_result(times: Times, results: dict[str, list[Result]]) -> dict[str, Any]:
    """Return seconds, numbers of robust images and rows of attacks, by contestant."""
    peers = [name for name in results if name != "rampart"]
    return {
        "seconds": {name: [round(value, 1) for value in values] for name, values in times.seconds.items()},
        "share_of_the_peers_time": {name: round(times.ratio("rampart", name), 3) for name in peers},
        "robust": {name: rounds[-1].robust for name, rounds in results.items()},
        "attacks_of_each_round": {name: [result.stages for result in rounds] for name, rounds in results.items()},
        "warnings": {name: results[name][-1].warnings for name in peers},
        PEER: version(PEER) if peers else None,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a Lightning checkpoint, .pth or .safetensors of the MNIST network")
    parser.add_argument("--data-dir", required=True, help="folder with MNIST/raw")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="val: 1,000 held-out training images")
    parser.add_argument("--num-images", type=int, default=250, help="number of images, from the split's first on")
    parser.add_argument("--eps", type=float, default=0.4, help="radius in l-inf, pixel scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attacks")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed runs of each contestant")
    parser.add_argument("--same-network", action="store_true", help="pyautoattack on Rampart's form of the network too")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    arguments = parse(argv)
    images, labels = load_first_images(arguments.data_dir, arguments.split, arguments.num_images)
    with full_float32(images.device.type):
        compare(arguments, images, labels)


def compare(arguments: argparse.Namespace, images: Tensor, labels: Tensor) -> None:
    """Run the contestants in turn, print and write JSON."""
    record = Record(arguments.out, arguments.seed)
    results: dict[str, list[Result]] = {}

    def keep(name: str, run: Callable[[], Result]) -> None:
        results.setdefault(name, []).append(run())

    runs = {name: partial(keep, name, run) for name, run in build_contestants(arguments, images, labels).items()}
    times = time_in_turn(runs, arguments.rounds, warm_up=0)
    settings = {"split": arguments.split, "images": len(labels), "eps": arguments.eps, "batch_size": BATCH_SIZE}
    record.show(describe_file(arguments.weights) | settings | build_result(times, results))


if __name__ == "__main__":
    main()
