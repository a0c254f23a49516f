"""Section ``trained``: the whole of ``fast.yaml``, with test and evaluation beside those of the shipped weights."""

import csv
import json
import tempfile
from pathlib import Path

from benchmarks.accelerator_sections.command_line import place
from benchmarks.accelerator_sections.evaluation import evaluate
from benchmarks.accelerator_sections.setting import FAST, ROOT, Rows, Setting
from benchmarks.accelerator_sections.worker import WorkerError, run_command

RECORDS = ROOT / "pretrained" / "mnist" / "fast"


def measure(setting: Setting, rows: Rows) -> None:
    """Add rows to the table ``trained``: clean accuracy, PGD-200 on all test images, and the worst case of some."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["cli.py", "fit", f"--config={FAST}", *setting.data_options(), *place(setting, folder / "fit")]
        try:
            seconds = run_command([*command, *setting.size.trained], ROOT, folder / "fit.txt", setting.seconds_left())
            rows.add("trained", measure="fit and test", seconds=seconds, **read_test(folder / "fit"))
            (checkpoint,) = (folder / "fit").rglob("last.ckpt")
            row = evaluate(setting, ROOT, checkpoint, folder / "evaluate")
        except (WorkerError, ValueError) as error:
            rows.leave_out("trained", error)
            return
        shipped = count_shipped(setting, row["images"])
        counts = {"robust": row["robust"], "shipped robust": shipped, "images": row["images"]}
        rows.add("trained", measure=f"evaluate, {setting.size.preset}", seconds=row["wall_seconds"], **counts)


def count_shipped(setting: Setting, images: int) -> int | None:
    """Return the robust images under AutoAttack among MNIST's first test images, with the shipped weights."""
    if setting.data_dir is None or setting.size.preset != "autoattack":
        return None
    with (RECORDS / "autoattack.csv").open() as file:
        first = list(csv.DictReader(file))[:images]
    return len([row for row in first if row["label"] == row["clean_prediction"] and not row["fooled_by"]])


def read_test(runs: Path) -> dict[str, object]:
    """Return the accuracies of the test at the end of a fit, and those of the shipped weights' test.

    Raises:
        ValueError: If there is not exactly one result.
    """
    files = list(runs.rglob("test.json"))
    if len(files) != 1:
        raise ValueError(f"fit wrote {len(files)} test results, not one")
    found: dict[str, object] = {}
    for prefix, file in (("", files[0]), ("shipped ", RECORDS / "test.json")):
        for result in json.loads(file.read_text())["results"]:
            found[prefix + result["name"]] = result["accuracy"]
    return found
