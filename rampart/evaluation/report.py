"""Reports of a worst-case search: JSON, terminal table, and CSV per image."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rampart.attacks import NormName, format_eps
from rampart.evaluation.gradient_masking import Sign
from rampart.evaluation.results import Stage, WorstCase
from rampart.evaluation.worst_case import WorstCaseSearch
from rampart.files import provenance

FORMAT = 2
"""Number of the format of ``report.json``; reports of earlier versions have none."""


def find_stage_contradictions(images: int, clean: int, stages: Sequence[Stage]) -> list[str]:
    """Find results that are impossible for any model. If there is one, the evaluation is broken.

    Args:
        images: Number of images.
        clean: Number of correctly classified clean images.
        stages: Counts per attack and eps, in the order of the runs.

    Returns:
        One sentence per contradiction.
    """
    problems = []
    if not 0 <= clean <= images:
        problems.append(f"{clean} of {images} clean images are classified correctly")
    robust = clean
    for stage in stages:
        name = f"{stage.attack} at eps {format_eps(stage.eps)}"
        if stage.robust > robust:
            problems.append(f"{stage.robust} images are robust after {name}, but only {robust} before")
        elif stage.attacked > robust:
            problems.append(f"{name} attacked {stage.attacked} images, but only {robust} were robust")
        robust = stage.robust
    return problems


def find_contradictions(rows: Sequence[tuple[dict[str, Any], float, int]], clean: int) -> list[str]:
    """Find contradictions between attacks that were each run on all images, larger than chance explains.

    An attack must leave no more robust images than there are correctly classified clean images, or than the same attack
    leaves with a smaller eps or with fewer steps, restarts, queries or targets.

    Args:
        rows: For each attack its settings (:meth:`rampart.attacks.Attack.settings`), eps, and number of robust images.
        clean: Number of correctly classified clean images.

    Returns:
        One sentence per contradiction.
    """
    problems = []
    for settings, eps, robust in rows:
        if robust > clean:
            attack = f"{settings['class']} at eps {format_eps(eps)}"
            problems.append(f"{robust} images are robust under {attack}, but only {clean} are correctly classified")
        if eps == 0 and robust != clean:
            problems.append(f"{robust} images are robust at eps 0, but {clean} are correctly classified")
    for one, eps, robust in rows:
        for other, larger, more in rows:
            if more <= robust + 3 * math.sqrt(max(min(robust, clean - robust), 1)):
                continue
            if one == other and larger > eps:
                problems.append(
                    f"{more} images are robust at eps {format_eps(larger)}, {robust} at eps {format_eps(eps)}"
                )
            if eps == larger and (name := _stronger_by(one, other)):
                problems.append(f"{more} images are robust with {other[name]} {name}, {robust} with {one[name]}")
    return problems


def _stronger_by(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the one setting in which ``other`` differs, if it makes ``other`` the stronger attack."""
    differ = [name for name in one if one[name] != other.get(name)]
    if len(one) != len(other) or len(differ) != 1 or differ[0] not in ("steps", "restarts", "queries", "targets"):
        return None
    low, high = one[differ[0]], other[differ[0]]
    return differ[0] if isinstance(low, int) and isinstance(high, int) and high > low else None


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a rate (Wilson 1927), for other images from the same distribution."""
    z = 1.959964
    rate, spread = count / total, z * z / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def build_report(
    search: WorstCaseSearch, found: WorstCase, signs: Sequence[Sign], trainer_precision: str | None = None
) -> dict[str, Any]:
    """Return the content of ``report.json``. Only ``timings`` and ``made_on`` differ from run to run.

    Args:
        search: The search, after it was run without autocast or TF32.
        found: Its result.
        signs: Signs of an unreliable evaluation.
        trainer_precision: Precision of the command's trainer, which the search does not use; it is only recorded.

    Raises:
        ValueError: If the numbers contradict each other.
    """
    images, clean = len(found.labels), found.count_robust(0)
    if problems := find_stage_contradictions(images, clean, found.stages):
        raise ValueError(f"the evaluation is broken, no number is reported: {'; '.join(problems)}")
    finite = found.eps[found.eps > 0].sort().values
    probed = search.clean_pass.probe.images
    median = float(finite[(len(finite) - 1) // 2]) if len(finite) else 0.0
    return {
        "format": FORMAT,
        "images": images,
        "norm": search.norm,
        "clean": _rate(clean, images),
        "robust": [{"eps": eps, **_rate(found.count_robust(eps), images)} for eps in search.eps],
        "median_fooling_eps": None if math.isinf(median) else median,
        "stages": [
            {"attack": s.attack, "eps": s.eps, "attacked": s.attacked, "robust": s.robust} for s in found.stages
        ],
        "signs": [{"name": sign.name, "message": sign.message, "images": sign.images} for sign in signs],
        "search": search.identity,
        "made_on": provenance(probed.device, probed.dtype, trainer_precision=trainer_precision),
        "timings": [round(stage.seconds, 1) for stage in found.stages],
    }


def _rate(count: int, images: int) -> dict[str, Any]:
    low, high = wilson_interval(count, images)
    return {"count": count, "accuracy": count / images, "interval_95": [low, high]}


def format_table(report: dict[str, Any]) -> str:
    """Return the report as a table for the terminal."""
    images = report["images"]
    width = max(len("attack"), *(len(stage["attack"]) for stage in report["stages"]))
    title = f"accuracy (%), {images:,} images, {report['norm']}"
    lines = [f"{'attack':<{width}}  {'eps':>7}  {'attacked':>8}  {'robust':>7}  {title}"]
    lines += ["-" * len(lines[0]), _line("clean", "", "", report["clean"]["count"], images, width)]
    for stage in report["stages"]:
        attacked = f"{stage['attacked']:,}"
        lines.append(_line(stage["attack"], format_eps(stage["eps"]), attacked, stage["robust"], images, width))
    lines.append("")
    for robust in report["robust"]:
        low, high = (f"{100 * bound:.2f}" for bound in robust["interval_95"])
        accuracy = f"{100 * robust['accuracy']:.2f}%"
        interval_95 = f"({report['norm']}; 95% interval {low} to {high})"
        lines.append(f"worst case at eps {format_eps(robust['eps'])}: {accuracy} {interval_95}")
    lines += [f"warning: {sign['name']}: {sign['message']}" for sign in report["signs"]]
    return "\n".join(lines)


def _line(name: str, eps: str, attacked: str, robust: int, images: int, width: int) -> str:
    return f"{name:<{width}}  {eps:>7}  {attacked:>8}  {robust:>7,}  {100 * robust / images:12.2f}"


def write_per_image(path: Path, found: WorstCase, attacks: Sequence[str], norm: NormName) -> None:
    """Write a CSV file with one row per image: its predictions, and the attack and the smallest eps that fooled it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "clean_prediction", "fooled_by", "fooled_at_eps", "adv_prediction", "norm"])
        columns = (found.labels, found.clean_class, found.attack, found.eps, found.adv_class)
        for index, (label, clean, attack, eps, adv) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            by = attacks[attack] if attack >= 0 else ""
            writer.writerow([index, label, clean, by, "" if math.isinf(eps) else eps, adv, norm])
