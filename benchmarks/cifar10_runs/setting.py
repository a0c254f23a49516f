"""Settings that all runs share, and child processes of the command line."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar10_runs.plan import Job

ROOT = Path(__file__).parent.parent.parent
RUNNING: set["subprocess.Popen[bytes]"] = set()
"""Processes that were started and have not ended."""

GRACE = 20.0  # seconds that a stopped process has to save its checkpoint


class CommandError(Exception):
    """A command that failed or was stopped by the clock; the message is its last line."""


@dataclass(frozen=True)
class Setting:
    """Settings of all runs.

    Attributes:
        data_dir: Folder with the images, absolute.
        out: Folder of results, absolute.
        runs_dir: Folder of the runs' own folders with their checkpoints, absolute.
        images: Test images for PGD.
        apgd_images: Test images for APGD.
        batch_size: Images per batch of an evaluation.
        steps: Steps of PGD, and of each run of APGD.
        both: Further options of both commands.
        fit: Further options of `cli.py fit`.
        starts: Weights by config, for runs that start from one that is not made here.
    """

    data_dir: Path
    out: Path
    runs_dir: Path
    images: int
    apgd_images: int
    batch_size: int
    steps: tuple[int, int] = (200, 100)
    both: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    starts: tuple[tuple[str, Path], ...] = ()

    def weights(self, job: Job) -> Path:
        """Return the path of a job's weights."""
        given = dict(self.starts).get(job.run.config)
        return given or self.out / "weights" / f"{job.name}.safetensors"

    def log(self, job: Job) -> Path:
        """Return the path of a job's output."""
        return self.out / f"{job.name}.txt"

    def common(self, job: Job, name: str) -> list[str]:
        """Return the options that `cli.py fit` and `cli.py evaluate` share.

        Args:
            job: The job.
            name: Name of the folder of the command's runs.
        """
        return [
            f"--config={job.run.file}", *job.run.options, *self.both,
            "--trainer.enable_progress_bar=false", f"--data.data_dir={self.data_dir}", f"--seed_everything={job.seed}",
            f"--runs_dir={self.runs_dir}", f"--name={name}",
        ]  # fmt: skip

    def hide_paths(self, text: str) -> str:
        """Return text with the names of options in place of this machine's folders."""
        names = {ROOT: ".", self.data_dir: "DIR", self.out: "FOLDER", self.runs_dir: "RUNS"}
        for path in sorted(names, key=lambda path: len(path.parts), reverse=True):  # One may be inside of another.
            text = text.replace(str(path), names[path])
        return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", text)

    def run(self, job: Job, words: Sequence[str], deadline: float | None = None) -> float:
        """Run a command of `cli.py`, add its output to the job's log, and return its wall time in seconds.

        Args:
            job: The job that it is part of.
            words: The command and its options.
            deadline: Value of :func:`time.monotonic` at which it is stopped; None for no limit.

        Raises:
            CommandError: If it fails or is stopped.
        """
        start, scratch = time.monotonic(), self.runs_dir / f"{job.name}.{words[0]}.txt"
        shown = f"$ python cli.py {shlex.join(words)}"
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {words[0]}", flush=True)
        code = run_command(words, scratch, deadline)
        seconds = time.monotonic() - start
        text = scratch.read_text(errors="replace")
        with self.log(job).open("a") as log:
            log.write(self.hide_paths(f"{shown}\n{text.strip()}\n({seconds:.1f} s, exit status {code})\n\n"))
        if code is None:
            raise CommandError(f"{words[0]} was stopped by the clock after {seconds:.0f} s")
        if code:
            last = [line for line in text.splitlines() if line.strip()][-1:]
            raise CommandError(f"{words[0]} failed with exit status {code}: {self.hide_paths(''.join(last))}")
        return seconds


def run_command(
    words: Sequence[str], output: Path, deadline: float | None = None, environment: Mapping[str, str] | None = None
) -> int | None:
    """Run a command of `cli.py` in a process of its own, and return its exit status; None if the clock stopped it.

    Args:
        words: The command and its options.
        output: File of its output, replaced.
        deadline: Value of :func:`time.monotonic` at which it is stopped; None for no limit.
        environment: Environment variables to add.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "cli.py", *words],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
            start_new_session=True,
        )
    RUNNING.add(process)
    try:
        return process.wait(None if deadline is None else max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)
        RUNNING.discard(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started; a training saves its checkpoint first."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_all() -> None:
    """End all processes that are running."""
    for process in list(RUNNING):
        end(process)
