"""Count the MNIST test images that an evaluation's attacks fool: by digit, prediction and gray share of the strokes.

    python -m experiments.mnist_gates.which_images per_image.csv OUT.json --data-dir DIR

Read the output of `cli.py evaluate`, without incorrectly classified clean images. Pixels above 0.1 belong to
strokes, and those between 0.1 and 0.9 are gray: at eps 0.4, which the evaluation must have, only gray pixels can cross
mid-gray.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.mnist import load_first_images
from benchmarks.record import Record, hash_file, new_file

EPS = 0.4
GROUPS = 5  # by how gray the strokes are, equal in size


def read_rows(per_image: Path, data_dir: str) -> tuple[list[dict[str, str]], Tensor]:
    """Return an evaluation's rows of correctly classified clean images, and these images.

    Raises:
        ValueError: If the file is not about the first test images of MNIST at eps 0.4.
    """
    with per_image.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images, labels = load_first_images(data_dir, "test", len(rows))
    if [int(row["label"]) for row in rows] != labels.tolist():
        raise ValueError(f"{per_image} is not of the first {len(rows)} test images of MNIST: other labels")
    rows = [row for row in rows if row["label"] == row["clean_prediction"]]
    if other := sorted({float(row["fooled_at_eps"]) for row in rows if row["fooled_by"]} - {EPS}):
        raise ValueError(f"{per_image} must be of eps {EPS} alone, has images fooled at {other}")
    return rows, images[[int(row["index"]) for row in rows]]


def build_report(rows: list[dict[str, str]], images: Tensor) -> dict[str, Any]:
    """Count images by digit, by how gray their strokes are, and by the class they are misclassified as."""
    gray = compute_gray_share(images)
    digits = sorted({row["label"] for row in rows})
    groups = gray.argsort(stable=True).tensor_split(min(GROUPS, len(rows)))
    misclassified_as = Counter(f"{row['label']} for {row['adv_prediction']}" for row in rows if row["fooled_by"])
    return {
        "eps": EPS,
        "by_digit": {digit: count_images(row for row in rows if row["label"] == digit) for digit in digits},
        "by_gray_share_of_strokes": [
            {"from": round(gray[group[0]].item(), 3), "to": round(gray[group[-1]].item(), 3)}
            | count_images(rows[at] for at in group)
            for group in groups
        ],
        "misclassified_as": dict(misclassified_as.most_common()),
    }


def compute_gray_share(images: Tensor) -> Tensor:
    """Return the gray pixels' share of each image's stroke pixels: ``(N, 1, H, W)``, float, in [0, 1], to ``(N,)``."""
    pixels = images.flatten(1)
    return ((pixels > 0.1) & (pixels < 0.9)).sum(1) / (pixels > 0.1).sum(1)


def count_images(rows: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Count all images, the robust images, and the images that each attack fools."""
    counts = Counter(row["fooled_by"] or "nothing" for row in rows)
    images, robust = counts.total(), counts.pop("nothing", 0)
    return {
        "images": images,
        "robust": robust,
        "share_robust": round(robust / images, 4),
        "fooled_by": dict(counts.most_common()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("per_image", type=Path, help="per_image.csv of an evaluation")
    parser.add_argument("out", type=new_file, help="JSON file to write")
    parser.add_argument("--data-dir", required=True, help="folder with MNIST/raw")
    arguments = parser.parse_args(argv)
    record = Record(arguments.out, seed=0)
    try:
        rows, images = read_rows(arguments.per_image, arguments.data_dir)
    except ValueError as error:
        parser.error(str(error))
    record.show({"per_image": hash_file(arguments.per_image)} | build_report(rows, images))


if __name__ == "__main__":
    main()
