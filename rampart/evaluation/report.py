"""A worst-case search as a table and as files."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rampart.attacks.eps import NormName
from rampart.evaluation.gradient_masking import Sign
from rampart.evaluation.results import Stage, WorstCase
from rampart.evaluation.worst_case import WorstCaseSearch
from rampart.files.provenance import provenance

FORMAT = 2  # of report.json; 1 had no number, and said standing for robust and answers for predictions


def find_stage_contradictions(images: int, clean: int, stages: Sequence[Stage]) -> list[str]:
    """List numbers that are impossible for any model: the evaluation is broken, and none of them may be quoted.

    Args:
        images: Number of images.
        clean: Number that is answered rightly as it is.
        stages: In the order in which they ran.
    """
    problems = []
    if not 0 <= clean <= images:
        problems.append(f"{clean} of {images} images are answered rightly")
    standing = clean
    for stage in stages:
        what = f"{stage.attack} at eps {stage.eps:g}"
        if stage.robust > standing:
            problems.append(f"{stage.robust} images stand after {what}, and only {standing} stood before")
        elif stage.attacked > standing:
            problems.append(f"{what} met {stage.attacked} images, and only {standing} stood before")
        standing = stage.robust
    return problems


def find_contradictions(rows: Sequence[tuple[dict[str, Any], float, int]], clean: int) -> list[str]:
    """List contradictions between attacks that were each run on all images, beyond what chance explains.

    A stronger attack leaves no more images standing: a larger eps, more restarts, more steps, and any attack rather
    than none.

    Args:
        rows: Of each attack its settings (:meth:`rampart.attacks.Attack.settings`), eps, and number of robust images.
        clean: Number of correctly classified clean images.
    """
    problems = []
    for settings, eps, standing in rows:
        if standing > clean:
            problems.append(f"{standing} images stand under {settings['class']} at eps {eps:g}, {clean} as they are")
        if eps == 0 and standing != clean:
            problems.append(f"{standing} images stand at eps 0, {clean} as they are")
    for one, eps, standing in rows:
        for other, larger, fewer in rows:
            if fewer <= standing + 3 * math.sqrt(max(min(standing, clean - standing), 1)):
                continue
            if one == other and larger > eps:
                problems.append(f"{fewer} images stand at eps {larger:g}, {standing} at eps {eps:g}")
            if eps == larger and (more := _stronger_by(one, other)):
                problems.append(f"{fewer} images stand with {other[more]} {more}, {standing} with {one[more]}")
    return problems


def _stronger_by(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The only setting in which ``other`` differs, if it makes it stronger."""
    differ = [name for name in one if one[name] != other.get(name)]
    if len(one) != len(other) or len(differ) != 1 or differ[0] not in ("steps", "restarts", "queries", "targets"):
        return None
    low, high = one[differ[0]], other[differ[0]]
    return differ[0] if isinstance(low, int) and isinstance(high, int) and high > low else None


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """95% confidence interval of a rate (Wilson 1927), for other images from where these came from."""
    z = 1.959964
    rate, spread = count / total, z * z / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def build_report(
    search: WorstCaseSearch, found: WorstCase, signs: Sequence[Sign], trainer_precision: str | None = None
) -> dict[str, Any]:
    """All that ``report.json`` holds. Only what is under ``timings`` and ``made_on`` differs from run to run.

    Args:
        search: Was run, without autocast or TF32.
        found: Its result.
        signs: Of masked gradients.
        trainer_precision: Of the command's trainer, which the search did not use; for the record.

    Raises:
        ValueError: If the numbers contradict one another.
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
    """The report for a terminal."""
    images = report["images"]
    width = max(len("after"), *(len(stage["attack"]) for stage in report["stages"]))
    title = f"accuracy (%), {images:,} images, {report['norm']}"
    lines = [f"{'after':<{width}}  {'eps':>7}  {'met':>6}  {'stand':>6}  {title}"]
    lines += ["-" * (width + 34), _line("clean", "", images, report["clean"]["count"], images, width)]
    for stage in report["stages"]:
        lines.append(_line(stage["attack"], f"{stage['eps']:g}", stage["attacked"], stage["robust"], images, width))
    lines.append("")
    for robust in report["robust"]:
        low, high = (f"{100 * bound:.2f}" for bound in robust["interval_95"])
        accuracy = f"{100 * robust['accuracy']:.2f}%"
        interval_95 = f"({report['norm']}; 95% interval {low} to {high})"
        lines.append(f"worst case at eps {robust['eps']:g}: {accuracy} {interval_95}")
    lines += [f"warning: {sign['name']}: {sign['message']}" for sign in report["signs"]]
    return "\n".join(lines)


def _line(name: str, eps: str, met: int, standing: int, images: int, width: int) -> str:
    return f"{name:<{width}}  {eps:>7}  {met:>6,}  {standing:>6,}  {100 * standing / images:12.2f}"


def write_per_image(path: Path, found: WorstCase, attacks: Sequence[str], norm: NormName) -> None:
    """Write a CSV with a row for each image: its predictions, and which attack fooled it at which eps of the norm."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label", "clean_prediction", "fooled_by", "fooled_at_eps", "adv_prediction", "norm"])
        columns = (found.labels, found.clean_class, found.attack, found.eps, found.adv_class)
        for index, (label, clean, attack, eps, adv) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            by = attacks[attack] if attack >= 0 else ""
            writer.writerow([index, label, clean, by, "" if math.isinf(eps) else eps, adv, norm])
