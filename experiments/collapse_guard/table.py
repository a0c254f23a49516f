"""Table of the trainings of `trials.py`, from their files: `python -m experiments.collapse_guard.table [FOLDER]`."""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe(record: dict[str, Any]) -> list[str]:
    """Return the cells of a training: name, alarms, end, ramp, accuracies and seconds."""
    alarms = [f"{event['kind']} at step {event['step']}" for event in record["events"]]
    ramp = [line.removeprefix("Adaptive ramp: ").rstrip(".") for line in record["ramp"]]
    test = record["test"] or {}
    accuracies = [
        f"{100 * test[name]:.1f}" if name in test else "" for name in ("clean", "PGD-200 @ 0.3", "PGD-200 @ 0.4")
    ]
    return [
        record["name"],
        "; ".join(alarms) or "none",
        f"{record['exit_status']}",
        "; ".join(ramp),
        *accuracies,
        f"{record['wall_seconds']:.0f}",
    ]


def format_table(records: list[dict[str, Any]]) -> str:
    """Return a table of trainings, in Markdown."""
    head = ["training", "alarms", "exit", "adaptive ramp", "clean %", "PGD-200 @ 0.3", "PGD-200 @ 0.4", "seconds"]
    rows = [head, ["---"] * len(head), *(describe(record) for record in records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    for group in ("stop", "recover", "healthy", "overfitting"):
        print(f"\n### {group}\n\n{format_table([record for record in found if record['group'] == group])}")
