"""Jobs that a scheduler restarts: the same command resumes from the job's newest checkpoint."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from commands.checkpoint_io import find_newest_readable

RECORD = "job.json"


def record_job(folder: Path) -> None:
    """Write the scheduler's job and the command to the run's folder, if a scheduler started the process."""
    if (job := _current_job()) is not None:
        (folder / RECORD).write_text(json.dumps({"job": job, "command": sys.argv[1:]}) + "\n")


def find_job_checkpoint(folder: Path) -> Path | None:
    """Return the newest readable checkpoint of earlier starts of this job with the same command.

    Args:
        folder: Folder of this run; folders of earlier starts have the same parent.

    Returns:
        Path of the checkpoint; None in a job's first start, in which a repeated command starts a new run.
    """
    job, own = _current_job(), folder.resolve()
    if job is None:
        return None
    earlier = [each for each in folder.parent.glob("fit-*") if each.resolve() != own and _belongs_to_job(each, job)]
    files = [file for each in earlier for file in _find_checkpoints(each)]
    started_again = _count_restarts() > 0 or any(file.name.startswith("hpc_ckpt_") for file in files)
    return find_newest_readable(files) if started_again else None


def requeue() -> str:
    """Requeue this SLURM job and return a sentence that says so; an empty string if requeuing failed."""
    try:
        done = subprocess.run(["scontrol", "requeue", _slurm_job_id()], check=False)  # noqa: S603, S607
    except OSError:
        return ""
    return "the job is requeued and resumes automatically" if done.returncode == 0 else ""


def _current_job() -> str | None:
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm {_slurm_job_id()}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        name = os.environ["TORCHELASTIC_RUN_ID"]
        return f"torchelastic {name if name != 'none' else os.getppid()}"
    return None


def _slurm_job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}" if array else os.environ["SLURM_JOB_ID"]


def _count_restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    return int(count) if count.isdigit() else 0


def _belongs_to_job(folder: Path, job: str) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return False
    return bool(record == {"job": job, "command": sys.argv[1:]})


def _find_checkpoints(folder: Path) -> Iterator[Path]:
    yield from folder.glob("hpc_ckpt_*.ckpt")
    yield from (folder / "checkpoints").rglob("*.ckpt")
