"""Random images in the files of CIFAR-10's binary version, to try the benchmark without the data set."""

from pathlib import Path

import numpy as np

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_synthetic(folder: Path, per_file: int = 10_000) -> None:
    """Write `cifar-10-batches-bin` with random images, each class a color of its own.

    Args:
        folder: Folder in which it is made.
        per_file: Images per file.
    """
    generator = np.random.default_rng(0)
    target = folder / "cifar-10-batches-bin"
    target.mkdir(parents=True)
    (target / "batches.meta.txt").write_text("\n".join(NAMES) + "\n")
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels = generator.permutation(np.arange(per_file, dtype=np.uint8) % 10)
        rows = generator.integers(0, 100, (per_file, 3073), dtype=np.uint8)
        rows[:, 1:] += 15 * labels[:, None]
        rows[:, 0] = labels
        rows.tofile(target / f"{name}.bin")
