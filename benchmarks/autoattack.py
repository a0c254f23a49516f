"""Time AutoAttack's standard version (Croce and Hein 2020), Rampart's and pyautoattack's, in turn, attack by attack.

Both meet the same images of the same weights with the same attacks: APGD-CE, targeted APGD, targeted FAB, Square, each
time the images that still stand. pyautoattack gets the network as it is usually written, and Rampart's form of it
too if `--same-network` is given, so that the attacks' share of the difference is seen.

    python benchmarks/autoattack.py FILE --data-dir DIR --num-images 500 --out OUT.json
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from as_published import PlainMNISTCNN
from timing import in_turn

from datamodules import MNISTDataModule
from evaluation import PRESETS, WorstCaseSearch, provenance
from networks import MNISTCNN
from networks.weights import load_weights

BATCH_SIZE = 250


class Steps(logging.Handler):
    """What pyautoattack says stands after each attack, and when, which is all in its log's lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if (line := record.getMessage()).startswith("robust accuracy after"):
            self.lines.append(line)


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a Lightning checkpoint, .pth or .safetensors of the MNIST network")
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    parser.add_argument("--num-images", type=int, default=500, help="the first of the test images")
    parser.add_argument("--eps", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--same-network", action="store_true", help="pyautoattack on Rampart's form of the network too")
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    data = MNISTDataModule(arguments.data_dir)
    data.prepare_data()
    data.setup("test")
    loader = data.test_dataloader()
    images, labels = loader.images[: arguments.num_images].float() / 255, loader.labels[: arguments.num_images]
    standing: dict[str, int] = {}
    attacks: dict[str, Any] = {}

    def rampart() -> None:
        network = load(MNISTCNN())
        search = WorstCaseSearch(
            network, images, labels, PRESETS["autoattack"], [arguments.eps], None, BATCH_SIZE, arguments.seed
        )
        result = search.run()
        standing["rampart"] = result.standing(arguments.eps)
        attacks["rampart"] = [
            {"attack": stage.attack, "standing": stage.standing, "seconds": round(stage.seconds, 1)}
            for stage in result.stages
        ]

    def peer(name: str, make: Callable[[], nn.Module]) -> Callable[[], None]:
        def run() -> None:
            network, steps = load(make()), Steps()
            attack = AutoAttack(network, eps=arguments.eps, seed=arguments.seed)
            attack.logger.setLevel(logging.DEBUG)
            attack.logger.addHandler(steps)
            found, _ = attack.run_standard_evaluation(images, labels, batch_size=BATCH_SIZE)
            attack.logger.removeHandler(steps)
            standing[name], attacks[name] = int((answers(network, found) == labels).sum()), steps.lines

        return run

    def load(network: nn.Module) -> nn.Module:
        torch.manual_seed(arguments.seed)
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
        "seconds": times.seconds,
        "share_of_the_peers_time": {name: times.ratio("rampart", name) for name in runs if name != "rampart"},
        "standing": standing,
        "attacks": attacks,
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def answers(network: nn.Module, images: Tensor) -> Tensor:
    """Classes ``(N,)``."""
    with torch.no_grad():
        return torch.cat([network(batch).argmax(1) for batch in images.split(BATCH_SIZE)])


if __name__ == "__main__":
    main()
