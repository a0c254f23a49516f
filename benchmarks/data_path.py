"""Time one epoch of loading batches against one epoch of PGD-5 training steps on them, in turn.

python -m benchmarks.data_path --out OUT.json
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.record import Record, new_file
from datamodules import DigitsDataModule
from rampart.attacks import PGD
from rampart.networks import MNISTCNN


def measure(rounds: int) -> dict[str, float]:
    """Return median seconds per epoch of loading and of training, and the median of their ratio within a round."""
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=128, val_size=0, max_shift=1)
    data.setup("fit")
    network, attack = MNISTCNN(), PGD(steps=5)
    optimizer = torch.optim.Adam(network.parameters())
    loading, training = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        batches = list(data.train_dataloader())
        loading.append(time.perf_counter() - start)
        start = time.perf_counter()
        for images, labels, _index in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(attack(network, images, labels, eps=0.4)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        training.append(time.perf_counter() - start)
    return {
        "images": len(data.train_dataloader().labels),
        "seconds_loading": statistics.median(loading),
        "seconds_training": statistics.median(training),
        "loading_share_of_training": statistics.median(a / b for a, b in zip(loading, training, strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    record = Record(arguments.out, seed=0)
    record.show({"rounds": arguments.rounds} | measure(arguments.rounds))


if __name__ == "__main__":
    main()
