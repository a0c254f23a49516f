"""One training of the grid by `cli.py fit`, and its record."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar10_runs.setting import ROOT, run_command
from experiments.large_eps.plan import CALLBACK, DATA, Training

LONGEST = 1800.0
"""Seconds after which a training is ended and recorded as failed."""

CONSTANT_SHARE = 0.9
"""A network that predicts one class for at least this share of the clean test images has collapsed."""


class InterruptedTraining(Exception):
    """A training that a signal ended: it has no record, and the next call starts it again."""


@dataclass(frozen=True)
class Setting:
    """Settings that all trainings share.

    Attributes:
        runs: Folder of the trainings' own folders, absolute.
        data_dir: Folder with CIFAR-10, absolute; None if no training needs it.
        options: Further options of `cli.py fit`.
    """

    runs: Path
    data_dir: Path | None = None
    options: tuple[str, ...] = ()

    def hide_paths(self, text: str) -> str:
        """Return text without this machine's folders."""
        for path, name in ((self.runs, "RUNS"), (self.data_dir, "DIR"), (ROOT, ".")):
            text = text if path is None else text.replace(str(path), name)
        return text


def train(training: Training, setting: Setting) -> dict[str, Any]:
    """Run a training from its start, and return its record. Of its folder, checkpoints are deleted.

    What an interrupted call left of the same training is deleted first: a training takes a minute, so that it starts
    again. A training that fails gives a record too, with the last line of its output as ``error``.

    Raises:
        InterruptedTraining: If a signal ended it.
    """
    folder, start = setting.runs / training.name, time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = list_words(training, setting)
    code = run_command(words, folder / "log.txt", start + LONGEST, {"OMP_NUM_THREADS": "1"})
    if code is not None and (code < 0 or code > 128):
        raise InterruptedTraining(f"ended by signal {-code if code < 0 else code - 128}; the next call starts it again")
    shown = [setting.hide_paths(word) for word in words]
    record = asdict(training) | {"arguments": shown, "seconds": round(time.monotonic() - start, 1)}
    for checkpoints in folder.glob("fit-*/checkpoints"):
        shutil.rmtree(checkpoints)
    if code == 0:
        return record | {"error": None} | read_results(next(folder.glob("fit-*")))
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    reason = f"exit status {code}: {lines[-1] if lines else 'no output'}"
    return record | {"error": setting.hide_paths(reason if code else f"no end after {LONGEST:.0f} seconds")}


def list_words(training: Training, setting: Setting) -> list[str]:
    """Return the words of `cli.py fit`."""
    folder = [] if not DATA[training.data].needs_folder else [f"--data.data_dir={setting.data_dir}"]
    return [
        "fit", f"--config={DATA[training.data].config}", *folder, f"--runs_dir={setting.runs}",
        f"--name={training.name}", f"--trainer.callbacks+={CALLBACK}", "--trainer.enable_progress_bar=false",
        *training.list_options(), *setting.options,
    ]  # fmt: skip


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results of a finished training from the files in its folder."""
    test, summary = (json.loads((folder / name).read_text()) for name in ("test.json", "summary.json"))
    clean, robust = (row["accuracy"] for row in test["results"])
    predicted: Sequence[int] = summary["predicted"]
    share = max(predicted) / sum(predicted)
    return {
        "clean": round(clean, 4),
        "robust": round(robust, 4),
        "images": sum(predicted),
        "classes": len(predicted),
        "top_share": round(share, 4),
        "collapsed": share >= CONSTANT_SHARE,
        **{name: value for name, value in summary.items() if name != "predicted"},
        **count_events(folder / "events.jsonl"),
        "fit_seconds": test["fit_seconds"],
        **{name: test[name] for name in ("commit", "processor", "gpus", "threads")},
        "torch": test["versions"]["torch"],
    }


def count_events(file: Path) -> dict[str, int]:
    """Return the number of the collapse guard's alarms, and of those after which it recovered; 0 without its file."""
    lines = file.read_text().splitlines() if file.exists() else []
    actions = [json.loads(line).get("action") for line in lines if line.strip()]
    return {"alarms": len(actions), "recoveries": actions.count("recover")}
