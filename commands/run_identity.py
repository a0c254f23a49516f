"""Identity of a training run: a restarted job, and ``--ckpt_path auto``, return to the folder of their run.

A run is recognised by its settings, which its ``config.yaml`` holds; a job also by the names that its scheduler and its
torchrun have for it, which ``run.json`` holds. Only the first process of a run reads and writes these files.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_info

from commands.requeue import count_restarts, current_job
from commands.run_folder import read_number
from commands.torchrun import torchrun_start
from rampart.files import write_whole

CONFIG, RECORD, LOCK = "config.yaml", "run.json", "run.lock"
WAIT_SECONDS = 60.0
"""Seconds that a process waits for the end of an earlier process of the same run."""

# Settings that say where a run is kept and where it starts, not which run it is.
PLACES = ("ckpt_path", "name", "runs_dir", "weights_only")

_held: list[FileLock] = []


def find_run(parent: Path, config: str, asked: bool) -> Path | None:
    """Return the folder of the run that this process continues; None for a new run.

    Args:
        parent: Folder of the runs with the same name.
        config: Settings of this run, as YAML.
        asked: True for ``--ckpt_path auto``, which returns to the newest run with these settings. Otherwise a run is
            continued only if this process is a job that was started again.
    """
    job, restarted, torchrun = current_job(), count_restarts() > 0, torchrun_start()
    if not asked and job is None and torchrun is None:
        return None
    settings = _read_settings(config)
    numbers = {folder: read_number(folder, "fit") for folder in parent.glob("fit-*")}
    folders = sorted((folder for folder in numbers if numbers[folder] >= 0), key=numbers.__getitem__, reverse=True)
    for folder in folders:
        record = read_record(folder)
        ours = job is not None and record.get("job") == job and (restarted or record.get("requeued") is True)
        ours = ours or (torchrun is not None and record.get("torchrun") == torchrun)
        if (asked or ours) and _settings_of(folder) == settings:
            return folder
    if asked:
        rank_zero_info(f"--ckpt_path auto: {_explain_new_run(parent, folders, settings)}")
    return None


def read_start(folder: Path) -> str | None:
    """Return the checkpoint that a run was started from, as its settings name it; None without one."""
    settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    path = settings.get("ckpt_path")
    return None if path is None else str(path)


def hold_run(folder: Path) -> None:
    """Lock a run's folder until :func:`release_run` or the end of this process, and record the job.

    Raises:
        ValueError: If another process trains in the folder, and does not end while this one waits.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        rank_zero_info(f"{folder} is in use by another process of this run: waiting up to {WAIT_SECONDS:.0f} seconds")
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise ValueError(
                f"{folder} is still in use by another process, which trains this run: wait until it ends, or leave out "
                "--ckpt_path auto to start a new run"
            ) from None
    except (NotImplementedError, OSError):  # a file system without locks
        pass
    _held.append(lock)
    write_record(folder, requeued=False)


def release_run() -> None:
    """Release the locks of this process."""
    while _held:
        _held.pop().release(force=True)


def write_record(folder: Path, requeued: bool) -> None:
    """Write to the run's folder which job and torchrun have started it, and whether the job was requeued."""
    record = {"job": current_job(), "torchrun": torchrun_start(), "requeued": requeued}
    write_whole(folder / RECORD, json.dumps(record) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a run; empty if there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _explain_new_run(parent: Path, folders: list[Path], settings: Mapping[str, Any]) -> str:
    for folder in folders:
        if other := _settings_of(folder):
            here, there = dict(_flatten(settings, "")), dict(_flatten(other, ""))
            names = [name for name in here | there if here.get(name) != there.get(name)]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            return f"no run in {parent} has these settings ({folder.name} differs in {shown}), so a new run starts"
    return f"there is no earlier run in {parent}, so a new run starts"


def _settings_of(folder: Path) -> dict[str, Any]:
    try:
        return _read_settings((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _read_settings(config: str) -> dict[str, Any]:
    settings = yaml.safe_load(config)
    return {name: value for name, value in settings.items() if name not in PLACES} if isinstance(settings, dict) else {}


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flatten(part, f"{name}.{key}".lstrip("."))
    else:
        yield name, value
