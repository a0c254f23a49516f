"""Evaluation of a run's weights by `cli.py evaluate`: PGD-200 at three eps, APGD at the target eps."""

import csv
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.cifar10_runs.plan import Job
from benchmarks.cifar10_runs.setting import Setting
from benchmarks.cifar10_runs.training import newest

EPS = (8, 16, 32)
"""Radii of PGD in 1/255."""

PGD, APGD = "pgd", "apgd"
CLASSES = 10


def describe_attacks(kind: str, steps: tuple[int, int]) -> str:
    """Return the value of `--attacks`.

    PGD has the paper's steps of 2/255, and its result for an image is the first adversarial iterate, if there is one.
    """
    pgd, apgd = steps
    if kind == PGD:
        settings: list[dict[str, Any]] = [{"steps": pgd, "step_size": "2/255", "stop_when_fooled": True}]
    else:
        settings = [{"steps": apgd}, {"steps": apgd, "targets": CLASSES - 1}]
    name = {PGD: "rampart.attacks.PGD", APGD: "rampart.attacks.APGD"}[kind]
    return json.dumps([{"class_path": name, "init_args": each} for each in settings])


def evaluate_words(job: Job, setting: Setting, kind: str, images: int) -> list[str]:
    """Return the words of `cli.py evaluate`.

    Args:
        job: The job.
        setting: The settings.
        kind: :data:`PGD` or :data:`APGD`.
        images: Number of test images, from the first on.
    """
    eps = EPS if kind == PGD else (job.run.eps,)
    return [
        "evaluate", *setting.common(job, f"{job.name}-{kind}"), f"--ckpt_path={setting.weights(job)}",
        f"--attacks={describe_attacks(kind, setting.steps)}", f"--eps=[{','.join(f'{each}/255' for each in eps)}]",
        f"--num_images={images}", f"--batch_size={min(setting.batch_size, images)}",
    ]  # fmt: skip


def evaluate(
    job: Job, setting: Setting, images: int, apgd_images: int, deadline: float | None = None
) -> dict[str, Any]:
    """Evaluate a job's weights, and return what the record keeps of both reports.

    Args:
        job: The job.
        setting: The settings.
        images: Test images for PGD, from the first on.
        apgd_images: Test images for APGD, from the first on.
        deadline: Value of :func:`time.monotonic` at which it is stopped; None for no limit.

    Raises:
        CommandError: If an evaluation fails or is stopped.
    """
    start, found = time.monotonic(), {}
    for kind, number in ((PGD, images), (APGD, apgd_images)):
        words = evaluate_words(job, setting, kind, number)
        setting.run(job, words, deadline)
        folder = newest(setting.runs_dir / f"{job.name}-{kind}", "evaluate-*")
        found[kind] = {"command": setting.hide_paths(" ".join(words)), **read_report(folder)}
    return found | {"evaluation_seconds": round(time.monotonic() - start, 1)}


def read_report(folder: Path) -> dict[str, Any]:
    """Return the numbers of a report, and the number of images for which each class is predicted.

    ``predicted`` counts the predictions on clean images, ``predicted_under_attack`` those on the adversarial images of
    images that were fooled and on clean images of the others.
    """
    report = json.loads((folder / "report.json").read_text())
    with (folder / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {name: report[name] for name in ("images", "clean", "robust", "stages", "timings")}
    signs = [{"name": sign["name"], "message": sign["message"]} for sign in report["signs"]]
    return kept | {
        "signs": signs,
        "weights_fingerprint": report["search"]["weights"],
        "predicted": count_classes([row["clean_prediction"] for row in rows]),
        "predicted_under_attack": count_classes([row["adv_prediction"] for row in rows]),
    }


def count_classes(predictions: list[str]) -> list[int]:
    """Return the number of predictions of each class."""
    counts = Counter(int(prediction) for prediction in predictions)
    return [counts[number] for number in range(CLASSES)]
