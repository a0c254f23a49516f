"""Jobs of a scheduler: their number, their restarts, and the request to be queued again."""

import os
import subprocess
from signal import Signals

REQUEUED = "the job is in the queue again and resumes automatically"
SECONDS = 10.0
"""Seconds to wait for SLURM's controller."""


def requeue(signum: int, resumable: bool) -> str:
    """Return this SLURM job to the queue, if it should run again, and return a sentence that says so.

    SLURM sends SIGTERM to a job that is preempted, cancelled, at its time limit or on a failed node, and requeues it by
    itself after a node failure or if it is preempted without a grace time. A preempted job that ends within its grace
    time would be over, so it asks for its return. So does a job that gets SIGUSR1, which ``sbatch --signal`` sends
    before the time limit.

    Args:
        signum: Signal that ends the run.
        resumable: True if this process did work that the next start continues; otherwise SIGUSR1 does not requeue the
            job, because that could repeat forever.

    Returns:
        The sentence; empty if the job is not in the queue.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return ""
    job = _read_job()
    if int(job.get("Restarts", "0")) > count_restarts():
        return REQUEUED
    preempted = job.get("PreemptTime", "None") != "None" and job.get("Requeue") == "1"
    asked = resumable and Signals(signum).name == "SIGUSR1"
    cancelled = job.get("JobState", "RUNNING") != "RUNNING"
    if cancelled or not (preempted or asked):
        return ""
    return REQUEUED if _run_scontrol("requeue", _slurm_job_id()) is not None else ""


def _read_job() -> dict[str, str]:
    """Return the state of this job by the names that scontrol uses; empty if SLURM's controller does not respond."""
    return _show("job", _slurm_job_id())


def read_node(name: str) -> dict[str, str]:
    """Return the state of a node, like :func:`_read_job`."""
    return _show("node", name)


def _show(kind: str, name: str) -> dict[str, str]:
    words = (_run_scontrol("--oneliner", "show", kind, name) or "").split()
    return dict(word.split("=", 1) for word in reversed(words) if "=" in word)  # a user's texts come last


def _run_scontrol(*arguments: str) -> str | None:
    """Return the output of SLURM's program; None if it failed."""
    try:
        done = subprocess.run(  # noqa: S603
            ["scontrol", *arguments],  # noqa: S607
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


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
