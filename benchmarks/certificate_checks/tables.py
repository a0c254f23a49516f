"""Results of all sections as one page of Markdown tables."""

from collections.abc import Sequence
from typing import Any

from benchmarks.certificate_checks import instances, published
from benchmarks.certificate_checks.oracle import AGREEMENT
from rampart.attacks import APGD, PGD
from rampart.bounds.certificates import METHODS


def describe_attacks(attacks: Sequence[PGD | APGD]) -> str:
    """Return the names and steps of attacks that run in turn."""
    return ", then ".join(f"{attack.name} ({attack.steps} steps)" for attack in attacks)


INSTANCES = f"""## Instances with a known outcome

Proved robust (`unsat`), refuted (`sat`) or open, by the verifiers of VNN-COMP 2021. A counterexample counts if float64
arithmetic confirms it. Attacks in turn, each from {instances.STARTS} random points of the instance's own box:
{describe_attacks(instances.ATTACKS)}.
"""
PUBLISHED = f"""## Published networks

In %; clean accuracy is over all images, certified accuracy over the first of them ("bounded"), robust accuracy over the
first of these ("attacked"). At a smaller eps than the published one, the bounds certify images, which the attacks then
try to fool: {describe_attacks(published.ATTACKS)}.

Full CROWN and the LP bound inner layers by a backward pass or a program for each neuron; IBP and CROWN-IBP bound them
by intervals. On networks that were not trained for intervals they therefore certify fewer images, here none at the
published eps. The published certified numbers are of other methods, and not to be equalled.
"""
ORACLE = f"""## Agreement with auto_LiRPA

The largest difference of a bound on a class's margin, in float64, relative to the largest bound of the same image; at
most {AGREEMENT} agrees. Certified images or instances by Rampart and by auto_LiRPA.
"""


def format_page(result: dict[str, Any]) -> str:
    """Format a record as Markdown: its setting, contradictions, and a table for each section that it has."""
    parts = ["# Certificates compared with what others have proved", _describe(result), _list_contradictions(result)]
    if "instances" in result:
        counts = instances.count_instances(result["instances"])
        parts += [INSTANCES, format_rows([_plain(row) for row in counts]), _list_fooled(result["instances"])]
    if "published" in result:
        parts += [PUBLISHED, format_rows([summarise(row) for row in result["published"]])]
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
        f"`{result['command']}`\n\nSeed {result['seed']}, commit `{result['commit']}`, torch "
        f"{result['versions']['torch']}, {result['threads']} thread(s) on {result['processor']}, "
        f"{result['wall_seconds'] / 60:.0f} minutes."
    )


def _list_contradictions(result: dict[str, Any]) -> str:
    if not result["contradictions"]:
        return "No contradiction was found."
    return "Contradictions:\n\n" + "\n".join(f"- {text}" for text in result["contradictions"])


def _list_fooled(rows: Sequence[dict[str, Any]]) -> str:
    """List the instances that an attack fooled, one line per network, and those that have an unknown counterexample."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row["counterexample"]:
            key = f"{row['set']}, {row['network']}, `{row['verdict']}`"
            names.setdefault(key, []).append(f"{row['instance']} ({row['counterexample']['attack']})")
    lines = [f"| {key} | {', '.join(found)} |" for key, found in names.items()]
    head = ["| fooled | instances, from 0, and the attack that found the point |", "| --- | --- |"]
    table = "\n".join([*head, *lines]) if lines else "No instance was fooled."
    missed = [row for row in rows if row["verdict"] == "sat" and not row["counterexample"]]
    names_missed = ", ".join(f"{row['set']} {row['instance']}" for row in missed) or "none"
    return f"{table}\n\nRefuted, but not fooled here: {names_missed}."


def summarise(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a published network's row, by column."""
    published = row["published"] or dict.fromkeys(("clean", "pgd", "exact", "certified", "decimals"))
    clean, pgd, exact, certified = (
        _percent(published[name], published["decimals"]) for name in ("clean", "pgd", "exact", "certified")
    )
    return {
        "network": row["network"],
        "eps": row["eps"],
        "clean, published": clean,
        "clean": _percent(100 * row["correct"] / row["total"]),
        "PGD, published": pgd,
        "exact": exact,
        "attacked": f"{row['attacked']:,}",
        "robust": _percent(100 * row["robust"] / row["attacked"]),
        "certified, published": f"{certified} ({published['method']})" if certified else "",
        "bounded": f"{row['bounded']:,}",
        **{f"certified, {name}": _percent(100 * row["certified"][name] / row["bounded"]) for name in METHODS},
        "certified of the attacked": str(row["certified of the attacked"]),
        "of these fooled": str(row["certified and fooled"]),
    }


def _percent(value: float | None, decimals: int | None = None) -> str:
    return "" if value is None else f"{value:.{2 if decimals is None else decimals}f}"
