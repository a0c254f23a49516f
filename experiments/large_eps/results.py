"""Records of the grid as tables and as a figure."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from experiments.large_eps.plan import DATA, INITS, METHODS, TEST_ATTACK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
FACTOR = 1.5
"""A network has learned an eps if its robust accuracy there is above this many times that of a constant prediction."""


def has_learned(record: Record) -> bool:
    """Return True if robust accuracy at the target eps is clearly above that of a constant prediction."""
    return not record["error"] and record["robust"] > FACTOR / record["classes"]


def find_largest_learned(records: Iterable[Record]) -> dict[int, str | None]:
    """Return, by seed, the largest target eps at which a training has learned; None if there is none."""
    found: dict[int, str | None] = {}
    for record in sorted(records, key=lambda record: (record["seed"], Fraction(record["target"]))):
        found[record["seed"]] = record["target"] if has_learned(record) else found.get(record["seed"])
    return found


def describe_result(record: Record) -> str:
    """Return a training's result in a line."""
    if record["error"]:
        return f"failed: {record['error']}"
    collapsed = ", one constant class" if record["collapsed"] else ""
    rates = f"{100 * record['clean']:.1f}% clean, {100 * record['robust']:.1f}% robust at {record['target']}"
    return f"{rates}{collapsed} ({record['seconds']:.0f} s)"


def format_tables(records: Sequence[Record]) -> str:
    """Return a page in Markdown with a table per data set, failed trainings, and the machines."""
    lines = ["# The largest eps that each method can learn", ""]
    for data in [name for name in DATA if any(record["data"] == name for record in records)]:
        own = [record for record in records if record["data"] == data]
        lines += [f"## {data}", "", *_list_rows(own, sorted(DATA[data].targets, key=Fraction)), ""]
    if failed := [record for record in records if record["error"]]:
        lines += ["## Failed trainings", ""]
        lines += [f"- {'-'.join(str(record[name]) for name in KEY)}: `{record['error'][:90]}`" for record in failed]
        lines.append("")
    if done := [record for record in records if not record["error"]]:
        images = ", ".join(sorted({f"{record['images']:,}" for record in done}))
        lines += [NOTE.format(images=images, steps=TEST_ATTACK["init_args"]["steps"], factor=FACTOR), ""]  # type: ignore[index]
        lines += ["![Robust accuracy at the target eps](figure.png)", "", *_list_machines(done), ""]
    return "\n".join(lines)


KEY = ("data", "method", "init", "target", "seed")
NOTE = (
    "Robust accuracy at the target eps in %, mean (smallest to largest) over seeds, under PGD with {steps} steps on\n"
    "the first {images} test images. A training has learned its target eps if robust accuracy is above {factor} times\n"
    "that of a constant prediction. *One class*: trainings that predict one class for at least 90% of the clean\n"
    "images. *Eps reached*: the smallest of the trainings' largest eps, as a share of the target. *Evaluations*:\n"
    "thousands of gradient evaluations per training. [runs.json](runs.json) has each training."
)


def _list_rows(records: Sequence[Record], targets: Sequence[str]) -> list[str]:
    head = [
        "initialisation", "method", *targets, "largest eps learned, by seed", "one class", "alarms", "eps reached",
        "evaluations", "minutes",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for init in INITS:
        for method in METHODS:
            own = [record for record in records if (record["init"], record["method"]) == (init, method)]
            if own:
                lines.append(f"| {' | '.join([init, method, *_list_cells(own, targets)])} |")
    return lines


def _list_cells(records: Sequence[Record], targets: Sequence[str]) -> list[str]:
    cells = [_format_accuracies([record for record in records if record["target"] == target]) for target in targets]
    cells.append(", ".join(eps or "none" for eps in find_largest_learned(records).values()))
    done = [record for record in records if not record["error"]]
    if not done:
        return [*cells, "", "", "", "", ""]
    reached = min(record["largest_eps"] / float(Fraction(record["target"])) for record in done)
    evaluations = sum(record["gradient_evaluations"] for record in done) / len(done)
    return [
        *cells, f"{sum(record['collapsed'] for record in done)} of {len(done)}",
        str(sum(record["alarms"] for record in done)), f"{100 * reached:.0f}%", f"{evaluations / 1000:.0f}",
        f"{sum(record['seconds'] for record in done) / 60:.0f}",
    ]  # fmt: skip


def _format_accuracies(records: Sequence[Record]) -> str:
    values = [100 * record["robust"] for record in records if not record["error"]]
    failed = f"{len(records) - len(values)} failed" if len(values) < len(records) else ""
    if not values:
        return failed
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{spread} {failed}".strip()


def _list_machines(records: Sequence[Record]) -> list[str]:
    kinds: dict[tuple[Any, ...], set[str]] = {}
    for record in records:
        machine = record["processor"], *record["gpus"], f"torch {record['torch']}"
        kinds.setdefault(machine, set()).add(str(record["commit"]))
    return [f"- {', '.join(machine)}; commits {', '.join(sorted(commits))}" for machine, commits in kinds.items()]


def plot_records(records: Sequence[Record]) -> "Figure":
    """Plot robust accuracy at the target eps over the target eps, for each data set, initialisation and method.

    Args:
        records: Records of finished trainings, at least one.
    """
    from matplotlib.figure import Figure

    sets = [name for name in DATA if any(record["data"] == name for record in records)]
    inits = [init for init in INITS if any(record["init"] == init for record in records)]
    drawing = Figure(figsize=(4.2 * len(inits) + 0.8, 3.4 * len(sets) + 0.8), layout="constrained")
    grid = drawing.subplots(len(sets), len(inits), squeeze=False, sharey="row")
    for row, data in zip(grid, sets, strict=True):
        for axes, init in zip(row, inits, strict=True):
            own = [record for record in records if (record["data"], record["init"]) == (data, init)]
            _draw_methods(axes, own)
            axes.set(title=f"{data}, {init} initialisation", xlabel="target eps", ylim=(0, None))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("robust accuracy at the target eps (%)")
    labelled = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawing.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=len(METHODS) + 1)
    return drawing


def _draw_methods(axes: Any, records: Sequence[Record]) -> None:
    """Draw the mean over seeds as a line and each seed as a point, side by side, and the rule for "learned"."""
    targets = sorted({record["target"] for record in records}, key=Fraction)
    for number, method in enumerate(METHODS):
        own = [record for record in records if record["method"] == method]
        if not own:
            continue
        points = [(targets.index(record["target"]), 100 * record["robust"]) for record in own]
        places = sorted({place for place, _ in points})
        means = []
        for place in places:
            values = [value for at, value in points if at == place]
            means.append(sum(values) / len(values))
        shift, style = 0.06 * (number - len(METHODS) / 2 + 0.5), {"color": f"C{number}"}
        axes.plot([place + shift for place in places], means, label=method, **style)
        axes.scatter([place + shift for place, _ in points], [value for _, value in points], s=18, **style)
    if records:
        chance = 100 / records[0]["classes"]
        axes.axhline(chance, color="black", linestyle=":", linewidth=1)
        axes.axhline(FACTOR * chance, color="0.5", linestyle="--", linewidth=1, label="learned above this line")
    axes.set_xticks(range(len(targets)), targets)
