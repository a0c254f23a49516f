"""Training of a run by `cli.py fit`, resumed if it was interrupted, and its weights in half precision."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.cifar10_runs.plan import Job
from benchmarks.cifar10_runs.setting import CommandError, Setting
from benchmarks.record import describe_file
from rampart.files.weight_files import read_checkpoint
from rampart.files.weights import network_weights

CURVES = ("val/certified_acc", "val/robust_acc", "val/clean_acc", "train/adv_acc", "train/adv_loss", "train/eps")
POINTS = 200  # per curve in the record


def train(job: Job, setting: Setting, options: Sequence[str] = (), deadline: float | None = None) -> None:
    """Train, or resume the newest readable checkpoint of an interrupted training; write the weights.

    A training that fails is resumed once. What the record needs is written next to the run's folders.

    Args:
        job: The job.
        setting: The settings.
        options: Further options of `cli.py fit`.
        deadline: Value of :func:`time.monotonic` at which it is stopped; None for no limit.

    Raises:
        CommandError: If it fails twice, or without a checkpoint, or is stopped.
    """
    if is_trained(job, setting):
        return
    for last_try in (False, True):
        checkpoint = find_last_checkpoint(job, setting)
        try:
            setting.run(job, [*fit_words(job, setting, checkpoint), *options], deadline)
            break
        except CommandError:
            late = deadline is not None and time.monotonic() > deadline
            if last_try or late or find_last_checkpoint(job, setting) is None:
                raise
    best = find_best_checkpoint(job, setting)
    folder = best.parent.parent
    read, config = read_checkpoint(best), yaml.safe_load((folder / "config.yaml").read_text())
    setting.weights(job).unlink(missing_ok=True)
    save_half(read, setting.weights(job))
    saved = {
        "config": job.run.file,
        "fit": setting.hide_paths(" ".join([*fit_words(job, setting, None), *options])),
        "network": config["model"]["init_args"]["network"],
        "epochs": config["trainer"]["max_epochs"],
        "phases": (config.get("ramp") or {}).get("phases"),
        "resumed": checkpoint is not None,
        "checkpoint": best.name,
        "optimizer_steps": read.get("global_step"),
        "fit_seconds": read_fit_seconds(find_last_checkpoint(job, setting)),
        **describe_file(setting.weights(job)),
        "curves": read_curves(folder),
    }
    if job.start is not None:
        saved["start"] = describe_file(setting.weights(job.start))
    trained_file(job, setting).write_text(json.dumps(saved))


def is_trained(job: Job, setting: Setting) -> bool:
    """Return True if a job's training is finished, and both its weights and what the record needs of it are kept."""
    return trained_file(job, setting).exists() and setting.weights(job).exists()


def trained_file(job: Job, setting: Setting) -> Path:
    """Return the path of what a finished training leaves for the record."""
    return setting.runs_dir / f"{job.name}.trained.json"


def fit_words(job: Job, setting: Setting, checkpoint: Path | None) -> list[str]:
    """Return the words of `cli.py fit`.

    Args:
        job: The job.
        setting: The settings.
        checkpoint: Checkpoint to resume; None for a new training.
    """
    words = ["fit", *setting.common(job, job.name), "--test_after_fit=false", *setting.fit]
    if checkpoint is not None:
        return [*words, f"--ckpt_path={checkpoint}"]
    return words if job.start is None else [*words, f"--ramp.init_from={setting.weights(job.start)}"]


def find_last_checkpoint(job: Job, setting: Setting) -> Path | None:
    """Return the newest readable `last.ckpt` of a job; None if there is none."""
    files = (setting.runs_dir / job.name).glob("fit-*/checkpoints/last*.ckpt")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            read_checkpoint(file)
        except (ValueError, OSError):
            continue
        return file
    return None


def find_best_checkpoint(job: Job, setting: Setting) -> Path:
    """Return the checkpoint that a job's last `cli.py fit` named at its end.

    Raises:
        CommandError: If it named none.
    """
    found: list[str] = re.findall(r"^Checkpoint: RUNS/(.+)$", setting.log(job).read_text(), re.MULTILINE)
    files = [file for file in (setting.runs_dir / name for name in found) if job.name in file.parts and file.is_file()]
    if not files:
        raise CommandError("fit named no checkpoint at its end")
    return files[-1]


def save_half(checkpoint: dict[str, Any], path: Path) -> None:
    """Write the network's weights of a checkpoint as safetensors, floating-point numbers in float16.

    Raises:
        ValueError: If a number is too large for float16.
    """
    weights = network_weights(checkpoint)
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    if too_large := [name for name, value in half.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"{too_large[0]} does not fit into float16: it is infinite or NaN there")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in half.items()}, path)


def read_fit_seconds(checkpoint: Path | None) -> float | None:
    """Return the training time that the last checkpoint of a run holds, its interrupted parts included."""
    callbacks = {} if checkpoint is None else read_checkpoint(checkpoint).get("callbacks", {})
    found = [state.get("fit_seconds") for name, state in callbacks.items() if "ResultsTable" in str(name)]
    return found[0] if found else None


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run as pairs of optimizer step and value, at most :data:`POINTS` of each."""
    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    curves: dict[str, list[tuple[int, float]]] = {}
    for tag in CURVES:
        if tag in events.Tags()["scalars"]:
            points = [(point.step, round(point.value, 5)) for point in events.Scalars(tag)]
            curves[tag] = points[:: len(points) // POINTS + 1]
    return curves


def newest(folder: Path, pattern: str) -> Path:
    """Return the newest path in a folder that fits a pattern.

    Raises:
        CommandError: If there is none.
    """
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CommandError(f"no {pattern} was written")
    return found[-1]
