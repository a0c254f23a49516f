"""Time an epoch of a DataModule's batches against an epoch of PGD-5 training steps on them, in turn.

python -m benchmarks.data_path
"""

import json
import statistics
import time

import torch
import torch.nn.functional as F

from datamodules import DigitsDataModule
from rampart.attacks import PGD
from rampart.files import provenance
from rampart.networks import MNISTCNN

ROUNDS = 3


def main() -> None:
    """Measure and print JSON."""
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=128, val_size=0, max_shift=1)
    data.setup("fit")
    network, attack = MNISTCNN(), PGD(steps=5)
    optimizer = torch.optim.Adam(network.parameters())
    loading, training = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        batches = list(data.train_dataloader())
        loading.append(time.perf_counter() - start)
        start = time.perf_counter()
        for images, labels, _index in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(attack(network, images, labels, eps=0.4)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        training.append(time.perf_counter() - start)
    share = statistics.median(a / b for a, b in zip(loading, training, strict=True))
    report = {
        "images": len(data.train_dataloader().labels),
        "seconds_loading": statistics.median(loading),
        "seconds_training": statistics.median(training),
        "loading_share_of_training": share,
        **provenance(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
