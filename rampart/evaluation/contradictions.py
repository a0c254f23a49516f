"""Contradictions between the numbers of an evaluation. If there is one, the evaluation is broken."""

import math
from collections.abc import Sequence
from typing import Any

from rampart.attacks import format_eps
from rampart.evaluation.results import Stage, WorstCase


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


def find_certificate_contradictions(found: WorstCase, attacks: Sequence[str]) -> list[str]:
    """Find images that an attack fooled at an eps at which they are certified. Either the bound or the attack is wrong.

    Args:
        found: Result of the search.
        attacks: Names of the attacks, in the order of the numbers in ``found.attack``.

    Returns:
        One sentence about the first such image, or none.
    """
    if found.certificates is None:
        return []
    radius = found.certificates.radius
    wrong = (found.eps.isfinite() & (radius >= found.eps) & (radius > 0)).nonzero().squeeze(1).tolist()
    if not wrong:
        return []
    first = wrong[0]
    name, eps = attacks[int(found.attack[first])], format_eps(float(found.eps[first]))
    more = f", and so for {len(wrong) - 1} more images" if len(wrong) > 1 else ""
    return [f"image {first} is certified up to eps {radius[first]:.6g}, but {name} fooled it at eps {eps}{more}"]
