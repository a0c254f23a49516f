"""Time AutoAttack's standard version (Croce and Hein 2020), Rampart's and pyautoattack's, in turn, attack by attack.

Both meet the same images of the same weights with the same attacks: APGD-CE, targeted APGD, targeted FAB, Square, each
time the images that still stand. Two things are Rampart's own: an image leaves a run at the step that fools it, and FAB
ends where a fooling image lies within eps, when the published code goes on to look for a nearer one. pyautoattack gets
the network as it is usually written, and Rampart's form of it too if `--same-network` is given, so that the attacks'
share of the difference is seen.

    python -m benchmarks.autoattack FILE --data-dir DIR --num-images 250 --rounds 3 --out OUT.json
"""

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyautoattack import AutoAttack
from torch import nn

from benchmarks.as_published import PlainMNISTCNN
from benchmarks.timing import in_turn
from benchmarks.worst_case import images_of
from rampart.evaluation import WorstCaseSearch, in_memory, preset_attacks
from rampart.files import provenance
from rampart.files.weights import load_weights
from rampart.networks import MNISTCNN

BATCH_SIZE = 250


class PeerLog(logging.Handler):
    """Collect pyautoattack's log: the robust share after each attack, the seconds so far, and its warnings."""

    AFTER = re.compile(r"robust accuracy after (\S+): ([\d.]+)% \(total time ([\d.]+) s\)")

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.num_images = num_images
        self.stages: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.so_far = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Read a line."""
        line = record.getMessage()
        if record.levelno >= logging.WARNING and line not in self.warnings:
            self.warnings.append(line)
        if match := self.AFTER.search(line):
            attack, percent, seconds = match[1], float(match[2]), float(match[3])
            standing = round(percent / 100 * self.num_images)
            self.stages.append(stage(attack, standing, seconds - self.so_far))
            self.so_far = seconds


def stage(attack: str, standing: int, seconds: float) -> dict[str, Any]:
    """An attack's row: how many images stand after it, how long it took."""
    return {"attack": attack, "standing": standing, "seconds": round(seconds, 1)}


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a Lightning checkpoint, .pth or .safetensors of the MNIST network")
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    parser.add_argument("--num-images", type=int, default=250, help="the first of the test images")
    parser.add_argument("--eps", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--same-network", action="store_true", help="pyautoattack on Rampart's form of the network too")
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    images, labels = images_of(arguments.data_dir, "test", arguments.num_images)
    standing: dict[str, int] = {}
    rounds: dict[str, list[list[dict[str, Any]]]] = {}
    warnings: dict[str, list[str]] = {}

    def rampart() -> None:
        search = WorstCaseSearch(
            load(MNISTCNN()),
            in_memory(images, labels),
            preset_attacks("autoattack"),
            [arguments.eps],
            None,
            BATCH_SIZE,
            arguments.seed,
        )
        result = search.run()
        standing["rampart"] = result.count_robust(arguments.eps)
        rounds.setdefault("rampart", []).append([stage(s.attack, s.robust, s.seconds) for s in result.stages])

    def peer(name: str, make: Callable[[], nn.Module]) -> Callable[[], None]:
        def run() -> None:
            log = PeerLog(len(labels))
            attack = AutoAttack(load(make()), eps=arguments.eps, seed=arguments.seed)
            attack.logger.setLevel(logging.DEBUG)
            attack.logger.addHandler(log)
            _, found = attack.run_standard_evaluation(images, labels, batch_size=BATCH_SIZE)
            attack.logger.removeHandler(log)
            standing[name], warnings[name] = int((found == labels).sum()), log.warnings
            rounds.setdefault(name, []).append(log.stages)

        return run

    def load(network: nn.Module) -> nn.Module:
        load_weights(network, arguments.weights)
        return network.eval()

    runs = {"pyautoattack": peer("pyautoattack", PlainMNISTCNN), "rampart": rampart}
    if arguments.same_network:
        runs["pyautoattack, Rampart's network"] = peer("pyautoattack, Rampart's network", MNISTCNN)
    times = in_turn(runs, arguments.rounds, warm_up=0)
    report = {
        "weights": Path(arguments.weights).name,
        "sha256": hashlib.sha256(Path(arguments.weights).read_bytes()).hexdigest(),
        "images": len(labels),
        "eps": arguments.eps,
        "seed": arguments.seed,
        "batch_size": BATCH_SIZE,
        "seconds": {name: [round(value, 1) for value in values] for name, values in times.seconds.items()},
        "share_of_the_peers_time": {name: round(times.ratio("rampart", name), 3) for name in runs if name != "rampart"},
        "standing": standing,
        "attacks_of_each_round": rounds,
        "warnings": warnings,
        "pyautoattack": version("pyautoattack"),
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
