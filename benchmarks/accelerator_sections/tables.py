"""Rows of all sections as Markdown tables, and the figure."""

from typing import Any

from matplotlib.figure import Figure

from benchmarks.accelerator_sections.setting import Row

ORDER = (
    "checks", "attack_step", "fit", "evaluate, compared", "evaluate", "ranks", "trained", "gradients",
    "adversarial images", "left out", "sections",
)  # fmt: skip
HIDDEN = {"table", "section", "made_on", "stages", "host_wait_places"}


def format_tables(rows: list[Row]) -> str:
    """Format rows as one Markdown table per kind of row."""
    parts = []
    for table in ORDER:
        if selected := [row for row in rows if row["table"] == table]:
            columns = list(dict.fromkeys(name for row in selected for name in row if name not in HIDDEN))
            head = "| " + " | ".join(name.replace("_", " ") for name in columns) + " |"
            lines = ["| " + " | ".join(_format(row.get(name)) for name in columns) + " |" for row in selected]
            parts.append(
                "\n".join([f"## {table.replace('_', ' ').capitalize()}", "", head, "|---" * len(columns) + "|", *lines])
            )
    return "\n\n".join(parts) + "\n"


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def plot_steps(rows: list[Row]) -> Figure:
    """Plot the milliseconds per attack step of all contestants, one panel per network and batch size."""
    steps = [row for row in rows if row["table"] == "attack_step"]
    most = max((row["steps"] for row in steps), default=0)
    steps = [row for row in steps if row["steps"] == most]
    cases = list(dict.fromkeys((row["network"], row["batch_size"]) for row in steps))
    figure = Figure(figsize=(8, 1 + 4 * max(len(cases), 1)), layout="constrained")
    for panel, case in zip(figure.subplots(max(len(cases), 1), 1, squeeze=False)[:, 0], cases, strict=False):
        selected = [row for row in steps if (row["network"], row["batch_size"]) == case]
        selected.sort(key=lambda row: float(row["ms_per_step"]))
        colors = [_color(row["contestant"]) for row in selected]
        panel.barh([row["contestant"] for row in selected], [row["ms_per_step"] for row in selected], color=colors)
        panel.invert_yaxis()
        panel.set(title=f"{case[0]}, batch {case[1]}", xlabel="ms per attack step")
        panel.tick_params(labelsize="small")
    return figure


def _color(contestant: str) -> str:
    if contestant.startswith("Rampart"):
        return "C0"
    return "C1" if contestant.startswith("baseline") else "0.7"
