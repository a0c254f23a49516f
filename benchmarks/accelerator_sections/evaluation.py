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
        for done in range(setting.size.evaluate_rounds):
            for name, checkout in list_checkouts(setting).items():
                runs = Path(folder) / f"{name}-{done}"
                try:
                    row = evaluate(setting, checkout, WEIGHTS, runs)
                except WorkerError as error:
                    rows.leave_out(f"evaluate, {name}", error)
                    continue
                found[name].append(rows.add("evaluate", code=name, **row))
    compare(found, rows)


def compare(found: dict[str, list[Row]], rows: Rows) -> None:
    """Add the ratios of times, and the difference of counts, of rounds that both completed."""
    pairs = list(zip(found[OURS], found.get(BASELINE, []), strict=False))
    if not pairs:
        return
    for key in ("attack_seconds", "wall_seconds"):
        times = Times({OURS: [ours[key] for ours, _ in pairs], BASELINE: [theirs[key] for _, theirs in pairs]})
        rows.add("evaluate, compared", time=key, rounds=len(pairs), speed_over_baseline=times.ratio(BASELINE, OURS),
                 robust=pairs[-1][0]["robust"], baseline_robust=pairs[-1][1]["robust"])  # fmt: skip


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
