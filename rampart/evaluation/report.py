"""Reports of a worst-case search: JSON, terminal table, and CSV per image."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rampart.attacks import NormName, format_eps
from rampart.bounds.certificates import MARGIN, MARGIN_FLOAT64
from rampart.evaluation.certification import MAX_EPS, TOLERANCE
from rampart.evaluation.contradictions import find_certificate_contradictions, find_stage_contradictions
from rampart.evaluation.gradient_masking import Sign
from rampart.evaluation.results import Certificates, WorstCase
from rampart.evaluation.worst_case import WorstCaseSearch
from rampart.files import provenance, write_whole

FORMAT = 3
"""Number of the format of ``report.json``: 2 has no certificates, and earlier reports have no number."""


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
    """Return the content of ``report.json``. Only its timings and ``made_on`` differ from run to run.

    Args:
        search: The search, after it was run without autocast or TF32.
        found: Its result.
        signs: Signs of an unreliable evaluation.
        trainer_precision: Precision of the command's trainer, which the search does not use; it is only recorded.

    Raises:
        ValueError: If the numbers contradict each other.
    """
    images, clean = len(found.labels), found.count_robust(0)
    problems = find_stage_contradictions(images, clean, found.stages)
    problems += find_certificate_contradictions(found, [attack.name for attack in search.attacks])
    if problems:
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
        "certificates": _describe_certificates(search, found),
        "signs": [{"name": sign.name, "message": sign.message, "images": sign.images} for sign in signs],
        "search": search.identity,
        "made_on": provenance(probed.device, probed.dtype, trainer_precision=trainer_precision),
        "timings": [round(stage.seconds, 1) for stage in found.stages],
        "certificate_timings": _list_seconds(found.certificates),
    }


def _describe_certificates(search: WorstCaseSearch, found: WorstCase) -> dict[str, Any] | None:
    """Return the report's section on certificates, with the reason if there are none; None if none were asked for."""
    if search.certifier is None:
        return None
    if found.certificates is None:
        return {"reason": search.certifier.reason or "no clean image is classified correctly"}
    radii, images = found.certificates.radius[found.eps > 0].sort().values, len(found.labels)
    return {
        "reason": None,
        "methods": list(search.certifier.methods),
        "network": type(search.certifier.network).__name__,
        "training_form": search.certifier.network is not search.model,
        "skip_certified": search.certifier.skip_certified,
        "certified": [{"eps": eps, **_rate(found.certificates.count_certified(eps), images)} for eps in search.eps],
        "median_radius": float(radii[(len(radii) - 1) // 2]) if len(radii) else 0.0,
        "stages": [
            {"method": s.method, "eps": s.eps, "tried": s.tried, "certified": s.certified}
            for s in found.certificates.stages
        ],
        "margin": {"float32": MARGIN, "float64": MARGIN_FLOAT64},
        "radii": {"largest": MAX_EPS, "tolerance": TOLERANCE * search.eps[-1]},
    }


def _list_seconds(certificates: Certificates | None) -> list[float]:
    """Return the seconds of the certificates' stages, and of the search for radii."""
    if certificates is None:
        return []
    return [round(seconds, 1) for seconds in (*(s.seconds for s in certificates.stages), certificates.seconds)]


def _rate(count: int, images: int) -> dict[str, Any]:
    low, high = wilson_interval(count, images)
    return {"count": count, "accuracy": count / images, "interval_95": [low, high]}


def format_table(report: dict[str, Any]) -> str:
    """Return the report as a table for the terminal."""
    images = report["images"]
    width = max(len("attack"), *(len(stage["attack"]) for stage in report["stages"]))
    certificates = report.get("certificates") or {}
    certified = {row["eps"]: row for row in certificates.get("certified", [])}

    def line(name: str, eps: str, attacked: str, robust: int, certified_at_eps: str) -> str:
        column = f"  {certified_at_eps:>9}" if certified else ""
        return f"{name:<{width}}  {eps:>7}  {attacked:>8}  {robust:>7,}{column}  {100 * robust / images:12.2f}"

    column = "  certified" if certified else ""
    title = f"accuracy (%), {images:,} images, {report['norm']}"
    lines = [f"{'attack':<{width}}  {'eps':>7}  {'attacked':>8}  {'robust':>7}{column}  {title}"]
    lines += ["-" * len(lines[0]), line("clean", "", "", report["clean"]["count"], "")]
    for stage in report["stages"]:
        count = f"{certified[stage['eps']]['count']:,}" if certified else ""
        attacked = f"{stage['attacked']:,}"
        lines.append(line(stage["attack"], format_eps(stage["eps"]), attacked, stage["robust"], count))
    lines.append("")
    for robust in report["robust"]:
        eps = robust["eps"]
        lines.append(f"worst case at eps {format_eps(eps)}: {_format_rate(robust, report['norm'])}")
        if eps in certified:
            lines.append(f"certified at eps {format_eps(eps)}: {_format_rate(certified[eps], report['norm'])}")
    lines += [describe_certificates(report)] if certificates else []
    lines += [f"warning: {sign['name']}: {sign['message']}" for sign in report["signs"]]
    return "\n".join(lines)


def _format_rate(rate: dict[str, Any], norm: str) -> str:
    low, high = (f"{100 * bound:.2f}" for bound in rate["interval_95"])
    return f"{100 * rate['accuracy']:.2f}% ({norm}; 95% interval {low} to {high})"


def describe_certificates(report: dict[str, Any]) -> str:
    """Return a sentence about a report's certificates: how they were made, or why there are none."""
    certificates = report["certificates"]
    if certificates["reason"] is not None:
        return f"no certificates: {certificates['reason']}"
    text = f"certificates: {', '.join(certificates['methods'])}, median radius {certificates['median_radius']:.3g}"
    if certificates["training_form"]:
        text += f"; bounds of {certificates['network']}, the training form of the attacked network: the same function"
    if certificates.get("skip_certified"):
        text += "; certified images were attacked by the first attack alone"
    return text


def write_per_image(path: Path, found: WorstCase, attacks: Sequence[str], norm: NormName, eps: Sequence[float]) -> None:
    """Write a CSV file with one row per image.

    A row has the image's predictions, and the attack and the smallest eps that fooled it. If there are certificates, it
    also has the image's certified radius, and 1 or 0 for each eps at which it is certified or not.

    Args:
        path: File to write.
        found: Result of the search.
        attacks: Names of the attacks.
        norm: Norm of the attacks.
        eps: The search's radii on the pixel scale.
    """
    radii = [] if found.certificates is None else found.certificates.radius.tolist()
    table = io.StringIO()
    writer = csv.writer(table)
    names = ["index", "label", "clean_prediction", "fooled_by", "fooled_at_eps", "adv_prediction", "norm"]
    certified = ["certified_radius", *(f"certified_at_{size:g}" for size in eps)]
    writer.writerow([*names, *(certified if radii else [])])
    columns = (found.labels, found.clean_class, found.attack, found.eps, found.adv_class)
    for index, (label, clean, attack, fooled_at, adv) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        by = attacks[attack] if attack >= 0 else ""
        row = [index, label, clean, by, "" if math.isinf(fooled_at) else fooled_at, adv, norm]
        bounds = [[radius, *(int(radius >= size) for size in eps)] for radius in radii[index : index + 1]]
        writer.writerow([*row, *(bounds[0] if bounds else [])])
    write_whole(path, table.getvalue())
