"""Records of runs as a table and a figure."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.cifar10_runs.evaluation import APGD, CLASSES, EPS, PGD

HEAD = (
    "run", "from", "seed", "clean", *(f"PGD-{{steps}} @ {eps}/255" for eps in EPS),
    "APGD-CE + APGD-T", "most predicted class", "epochs", "minutes of training",
)  # fmt: skip


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown: accuracies in % with 95% intervals, one row per run and seed, and means over seeds.

    Args:
        records: Records of finished runs.
    """
    steps = records[0]["steps"] if records else 200
    head = [name.format(steps=steps) for name in HEAD]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    chance = f"{100 / CLASSES:.1f}"
    lines.append(_line(["constant prediction", "", "", *[chance] * 5, "100%", "", ""]))
    for config in dict.fromkeys(record["run"] for record in records):
        group = [record for record in records if record["run"] == config]
        lines += [_line(_cells(record)) for record in group]
        if len(group) > 1:
            lines.append(_line(_mean_cells(group)))
    images = sorted({(record[PGD]["images"], record[APGD]["images"]) for record in records})
    counts = "; ".join(f"PGD on the first {pgd:,} test images, APGD on the first {apgd:,}" for pgd, apgd in images)
    return "\n".join(lines) + f"\n\n{NOTE.format(counts=counts)}\n"


NOTE = (
    "Accuracies in %, with 95% intervals over images in parentheses;\n{counts}.\n"
    "PGD has one random start and steps of 2/255. An image counts as fooled at the first adversarial iterate, and at\n"
    "every eps above one that fooled it. APGD is at the run's own target eps. Weights are in float16, as saved. The\n"
    "most predicted class is that of clean images; a network that has collapsed predicts one class for all."
)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rates(record: dict[str, Any]) -> list[dict[str, Any]]:
    pgd, apgd = record[PGD], record[APGD]
    return [pgd["clean"], *pgd["robust"], apgd["robust"][-1]]


def _cells(record: dict[str, Any]) -> list[str]:
    rates = [
        f"{100 * rate['accuracy']:.1f} ({100 * rate['interval_95'][0]:.1f} to {100 * rate['interval_95'][1]:.1f})"
        for rate in _rates(record)
    ]
    rates[-1] += f" @ {record['eps']}/255"
    predicted = record[PGD]["predicted"]
    most = max(range(CLASSES), key=lambda number: predicted[number])
    seconds = record["fit_seconds"]
    minutes = "" if seconds is None else f"{seconds / 60:.1f}"
    share = f"{most}: {100 * predicted[most] / sum(predicted):.0f}%"
    return [
        record["run"],
        record["from"] or "random",
        str(record["seed"]),
        *rates,
        share,
        str(record.get("epochs", "")),
        minutes,
    ]


def _mean_cells(group: Sequence[dict[str, Any]]) -> list[str]:
    columns = zip(*([100 * rate["accuracy"] for rate in _rates(record)] for record in group), strict=True)
    means = [f"{sum(column) / len(column):.1f} ({min(column):.1f} to {max(column):.1f})" for column in columns]
    name = f"{group[0]['run']}, mean (range) of {len(group)} seeds"
    return [name, group[0]["from"] or "random", "", *means, "", "", ""]


def plot_records(records: Sequence[dict[str, Any]]) -> Figure:
    """Plot validation accuracy under attack and eps over training, and the test accuracies as bars."""
    drawing = Figure(figsize=(13, 6), layout="constrained")
    grid = drawing.add_gridspec(2, 2, width_ratios=(1, 1.3))
    robust, eps = drawing.add_subplot(grid[0, 0]), drawing.add_subplot(grid[1, 0])
    bars = drawing.add_subplot(grid[:, 1])
    runs = list(dict.fromkeys(record["run"] for record in records))
    for record in records:
        style: dict[str, Any] = {
            "color": f"C{runs.index(record['run'])}",
            "linestyle": ("-", "--", ":")[record["seed"] % 3],
        }
        curves = record["curves"]
        held_out = curves.get("val/robust_acc")
        accuracy = held_out or curves.get("train/adv_acc", [])
        label = f"{record['run']}, seed {record['seed']}{'' if held_out else ', training images'}"
        for axes, points, scale in ((robust, accuracy, 100), (eps, curves.get("train/eps", []), 255)):
            axes.plot([step for step, _ in points], [scale * value for _, value in points], label=label, **style)
    robust.set(ylabel="accuracy under the run's own\nattack, held-out images (%)")
    eps.set(ylabel="training eps (1/255)", xlabel="optimizer steps")
    labels = ["clean", *(f"PGD @ {each}/255" for each in EPS), "APGD @ own eps"]
    for number, record in enumerate(records):
        heights = [100 * rate["accuracy"] for rate in _rates(record)]
        places = [place + 0.8 * (number + 0.5) / len(records) - 0.4 for place in range(len(labels))]
        color, alpha = f"C{runs.index(record['run'])}", 1.0 if record["seed"] % 2 == 0 else 0.6
        bars.bar(places, heights, 0.8 / len(records), color=color, alpha=alpha)
    bars.axhline(100 / CLASSES, color="black", linestyle=":", label="constant prediction")
    bars.set_xticks(range(len(labels)), labels)
    bars.set(ylabel="test accuracy (%)")
    bars.legend()
    for axes in (robust, eps, bars):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    drawing.legend(*robust.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawing
