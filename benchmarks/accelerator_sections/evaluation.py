"""Section ``evaluation``: `cli.py evaluate` on the shipped fast weights, with the baseline's in turn."""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.accelerator_sections.command_line import BASELINE, OURS, build_evaluate, check_images, list_checkouts
from benchmarks.accelerator_sections.setting import ROOT, Row, Rows, Setting
from benchmarks.accelerator_sections.worker import WorkerError, run_command
from benchmarks.timing import Times

WEIGHTS = ROOT / "pretrained" / "mnist" / "fast" / "weights.safetensors"


def measure(setting: Setting, rows: Rows) -> None:
    """Add a row per evaluation to the table ``evaluate``, and a last one with the ratios to ``evaluate, compared``."""
    try:
        check_images(setting)
    except WorkerError as error:
        rows.leave_out("evaluate", error)
        return
    found: dict[str, list[Row]] = {name: [] for name in list_checkouts(setting)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for done in range(setting.size.evaluate_rounds):
                if done and setting.seconds_left() < 1.2 * sum(parts[-1]["wall_seconds"] for parts in found.values()):
                    break
                for name, checkout in list_checkouts(setting).items():
                    row = evaluate(setting, checkout, WEIGHTS, Path(folder) / f"{name}-{done}")
                    found[name].append(rows.add("evaluate", code=name, **row))
        except WorkerError as error:
            rows.leave_out(f"evaluate, {name}", error)
    if BASELINE in found:
        compare(found[OURS], found[BASELINE], rows)


def compare(ours: list[Row], baseline: list[Row], rows: Rows) -> None:
    """Add the ratios of times, and the counts, in total and by attack, of rounds that both completed."""
    pairs = list(zip(ours, baseline, strict=False))
    for key in ("attack_seconds", "wall_seconds") if pairs else ():
        times = Times({OURS: [row[key] for row, _ in pairs], BASELINE: [row[key] for _, row in pairs]})
        add_comparison(rows, key, times, *(row["robust"] for row in pairs[-1]))
    for number, (stage, other) in enumerate(zip(*(row["stages"] for row in pairs[-1]), strict=True) if pairs else ()):
        seconds = [[max(row["stages"][number]["seconds"], 0.05) for row in pair] for pair in pairs]  # rounded to 0.1
        times = Times({OURS: [pair[0] for pair in seconds], BASELINE: [pair[1] for pair in seconds]})
        add_comparison(rows, f"seconds of {stage['attack']}", times, stage["robust"], other["robust"])


def add_comparison(rows: Rows, time: str, times: Times, robust: int, baseline_robust: int) -> None:
    """Add a row: the kind of time, the ratio of speeds, and the images that are robust after it."""
    ratio = times.ratio(BASELINE, OURS)
    counts = {"robust": robust, "baseline_robust": baseline_robust, "rounds": len(times.seconds[OURS])}
    rows.add("evaluate, compared", time=time, seconds=times.median(OURS), speed_over_baseline=ratio, **counts)


def evaluate(
    setting: Setting,
    checkout: Path,
    weights: Path,
    runs: Path,
    preset: str | None = None,
    num_images: int | None = None,
) -> Row:
    """Run `cli.py evaluate`, and return its times and counts.

    Args:
        setting: The section's settings.
        checkout: Folder of the code.
        weights: Weights of ``fast.yaml``.
        runs: Folder for the run; its results must not be cached there.
        preset: Named set of attacks; the size's if None.
        num_images: Number of images; the size's if None.

    Raises:
        WorkerError: If the command fails or takes longer than the section has left.
    """
    size = setting.size
    command = build_evaluate(setting, weights, runs, preset or size.preset, num_images or size.evaluated_images)
    runs.parent.mkdir(parents=True, exist_ok=True)
    log = runs.with_suffix(".txt")
    wall = run_command(command, checkout, log, setting.seconds_left())
    (file,) = runs.glob("*/evaluate-*/report.json")
    report: dict[str, Any] = json.loads(file.read_text())
    stages = [
        {"attack": stage["attack"], "robust": [*stage.values()][-1], "seconds": seconds}  # its name differs
        for stage, seconds in zip(report["stages"], report["timings"], strict=True)
    ]
    return {
        "images": report["images"],
        "clean": report["clean"]["count"],
        "robust": report["robust"][0]["count"],
        "wall_seconds": wall,
        "attack_seconds": sum(report["timings"]),
        "stages": stages,
        "made_on": {key: report["made_on"].get(key) for key in ("device", "precision", "tf32")},
    }
