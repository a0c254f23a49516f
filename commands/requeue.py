"""Jobs of a scheduler: their number, their restarts, and the request to be queued again."""

import os
import subprocess


def requeue() -> str:
    """Requeue this SLURM job and return a sentence that says so; an empty string if requeuing failed."""
    try:
        done = subprocess.run(["scontrol", "requeue", _slurm_job_id()], check=False)  # noqa: S603, S607
    except OSError:
        return ""
    return "the job is requeued and resumes automatically" if done.returncode == 0 else ""


def current_job() -> str | None:
    """Return the number of the job that this process belongs to, the same in all its starts; None without a job."""
    return f"slurm {_slurm_job_id()}" if "SLURM_JOB_ID" in os.environ else None


def count_restarts() -> int:
    """Return how often SLURM has requeued this job."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdigit() else 0


def _slurm_job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}" if array else os.environ["SLURM_JOB_ID"]
