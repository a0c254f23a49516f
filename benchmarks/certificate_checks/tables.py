"""Results of all sections as one page of Markdown tables."""

from collections.abc import Sequence
from typing import Any

from benchmarks.certificate_checks.instances import ATTACKS, STARTS, count_instances
from benchmarks.certificate_checks.oracle import AGREEMENT
from benchmarks.certificate_checks.published import ATTACK
from rampart.bounds.certificates import METHODS

INSTANCES = f"""## Instances with a known outcome

Proved robust (`unsat`), refuted (`sat`) or open, by the verifiers of VNN-COMP 2021. Attacks, each from {STARTS} random
points of the instance's own box: {", then ".join(f"{attack.name} ({attack.steps} steps)" for attack in ATTACKS)}. A
counterexample counts if float64 arithmetic confirms it.
"""
PUBLISHED = f"""## Published networks

In %, of all images where the numbers of images are those of the publication. The attack is {ATTACK.name} on the margin,
with one random start, on the first images. Full CROWN, and the LP, bound the inner layers by backward passes too, which
IBP and CROWN-IBP don't: their certified numbers are published with tighter methods, and are not to be equalled.
"""
ORACLE = f"""## Agreement with auto_LiRPA

The largest difference of a bound on a class's margin, in float64, relative to the largest bound of the same image; at
most {AGREEMENT} agrees. Certified images or instances by Rampart and by auto_LiRPA.
"""


def format_page(result: dict[str, Any]) -> str:
    """Format a record as Markdown: its setting, contradictions, and a table for each section that it has."""
    parts = ["# Certificates compared with what others have proved", _describe(result), _list_contradictions(result)]
    if "instances" in result:
        counts = count_instances(result["instances"])
        fooled = [row for row in result["instances"] if row["counterexample"]]
        parts += [INSTANCES, format_rows([_plain(row) for row in counts]), _list_fooled(fooled)]
    if "published" in result:
        parts += [PUBLISHED, format_rows([_summarise(row) for row in result["published"]])]
    if "oracle" in result:
        rows = [{**row, "relative_difference": f"{row['relative_difference']:.1e}"} for row in result["oracle"]]
        parts += [ORACLE, format_rows([_plain(row) for row in rows]) if rows else "auto_LiRPA is not installed."]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def format_rows(rows: Sequence[dict[str, str]]) -> str:
    """Format rows with the same keys as one table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(row: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", " "): str(value) for name, value in row.items()}


def _describe(result: dict[str, Any]) -> str:
    return (
        f"`{result['command']}`, seed {result['seed']}, commit `{result['commit']}`, torch "
        f"{result['versions']['torch']},\n{result['threads']} thread(s) on {result['processor']}, "
        f"{result['wall_seconds'] / 60:.0f} minutes."
    )


def _list_contradictions(result: dict[str, Any]) -> str:
    if not result["contradictions"]:
        return "No contradiction was found."
    return "Contradictions:\n\n" + "\n".join(f"- {text}" for text in result["contradictions"])


def _list_fooled(rows: Sequence[dict[str, Any]]) -> str:
    """List the instances that an attack fooled, one line per network."""
    if not rows:
        return "No instance was fooled."
    names: dict[str, list[str]] = {}
    for row in rows:
        key = f"{row['set']}, {row['network']}, `{row['verdict']}`"
        names.setdefault(key, []).append(f"{row['instance']} ({row['counterexample']['attack']})")
    lines = [f"| {key} | {', '.join(found)} |" for key, found in names.items()]
    return "\n".join(["| fooled | instances, from 0, and the attack that found the point |", "| --- | --- |", *lines])


def _summarise(row: dict[str, Any]) -> dict[str, str]:
    published, decimals = row["published"], row["published"]["decimals"]
    bounded, attacked = row["bounded"], row["attacked"]
    shown = {
        "network": row["network"],
        "eps": row["eps"],
        "images": f"{bounded:,}",
        "clean, published": _percent(published["clean"], decimals),
        "clean": _percent(100 * row["correct"] / bounded, 2),
        "robust, published": f"{_percent(published['pgd'], decimals)} (PGD)"
        + (f", {published['exact']:.2f} (exact)" if published["exact"] else ""),
        "robust, attacked": f"{_percent(100 * row['robust'] / attacked, 2)} of {attacked:,}",
        "certified, published": f"{_percent(published['certified'], decimals)} ({published['method']})",
    }
    shown |= {f"certified, {name}": _percent(100 * row["certified"][name] / bounded, 2) for name in METHODS}
    return shown | {"certified and fooled": str(row["certified and fooled"])}


def _percent(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
