"""Count the MNIST test images that an evaluation's attacks fool: by digit, by prediction, by gray of their strokes.

    python -m experiments.mnist_gates.which_images per_image.csv OUT.json --data-dir DIR

Reads what `cli.py evaluate` wrote, and leaves out images that are answered wrongly as they are. A pixel above 0.1 is of
a stroke, and one between 0.1 and 0.9 is gray: at eps 0.4, that of the evaluation, those alone can be carried
across mid-gray.
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.worst_case import images_of
from rampart.files import provenance

EPS = 0.4
GROUPS = 5  # by how gray the strokes are, equal in size


def main() -> None:
    """Count, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("per_image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    arguments = parser.parse_args()
    with arguments.per_image.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images, labels = images_of(arguments.data_dir, "test", len(rows))
    if [int(row["label"]) for row in rows] != labels.tolist():
        parser.error(f"{arguments.per_image} is not of the first {len(rows)} test images of MNIST: other labels")
    rows = [row for row in rows if row["label"] == row["clean_prediction"]]
    if other := sorted({float(row["fooled_at_eps"]) for row in rows if row["fooled_by"]} - {EPS}):
        parser.error(f"{arguments.per_image} must be of eps {EPS} alone, has images fooled at {other}")
    gray = gray_share(images[[int(row["index"]) for row in rows]])
    taken_for = Counter(f"{row['label']} for {row['adv_prediction']}" for row in rows if row["fooled_by"])
    report = {
        "per_image": hashlib.sha256(arguments.per_image.read_bytes()).hexdigest(),
        "eps": EPS,
        "by_digit": {
            digit: counts(row for row in rows if row["label"] == digit) for digit in sorted({r["label"] for r in rows})
        },
        "by_gray_share_of_strokes": [
            {"from": round(gray[group[0]].item(), 3), "to": round(gray[group[-1]].item(), 3)}
            | counts(rows[at] for at in group)
            for group in gray.argsort(stable=True).tensor_split(min(GROUPS, len(rows)))
        ],
        "taken_for": dict(taken_for.most_common()),
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n")


def gray_share(images: Tensor) -> Tensor:
    """The gray pixels' share of each image's stroke pixels, ``(N, 1, H, W)``, float, in [0, 1], to ``(N,)``."""
    pixels = images.flatten(1)
    return ((pixels > 0.1) & (pixels < 0.9)).sum(1) / (pixels > 0.1).sum(1)


def counts(rows: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Count the images, those that are robust, and those that each attack fools."""
    by = Counter(row["fooled_by"] or "nothing" for row in rows)
    images, standing = by.total(), by.pop("nothing", 0)
    return {
        "images": images,
        "standing": standing,
        "share_standing": round(standing / images, 4),
        "fooled_by": dict(by.most_common()),
    }


if __name__ == "__main__":
    main()
