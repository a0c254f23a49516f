"""Processes that work on request, in this checkout or in that of another commit."""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.accelerator_sections.setting import ROOT

PIPES = "BENCHMARK_PIPES"  # as in standalone/rampart_probe.py, whose imports take seconds
STANDALONE = Path(__file__).parent / "standalone"


class WorkerError(RuntimeError):
    """Error of a process that ended or did not reply in time, with the last line that it wrote."""


class Worker:
    """A started process that serves requests. As a context, it ends the process.

    Args:
        arguments: Arguments of Python.
        folder: Checkout in which it runs.
        log: File for its output.
        environment: Additional environment variables.
    """

    def __init__(
        self, arguments: list[str], folder: Path, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.log, self._rest = log, b""
        (theirs, write), (self._read, their_write) = os.pipe(), os.pipe()
        self._write = os.fdopen(write, "w")
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *arguments],
                cwd=folder,
                env={**os.environ, **_python_path(folder), **(environment or {}), PIPES: f"{theirs},{their_write}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs, their_write),
            )
        os.close(theirs)
        os.close(their_write)

    def send(self, **request: Any) -> None:
        """Send a request.

        Raises:
            WorkerError: If the process has ended.
        """
        try:
            self._write.write(json.dumps(request) + "\n")
            self._write.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._describe("ended")) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """Wait for a reply.

        Args:
            seconds: The longest wait.

        Raises:
            WorkerError: If the process ends or does not reply in time.
        """
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise WorkerError(self._describe(f"gave no reply in {seconds:.0f} s"))
            if not (block := os.read(self._read, 65536)):
                raise WorkerError(self._describe("ended"))
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply; see :meth:`receive`."""
        self.send(**request)
        return self.receive(seconds)

    def _describe(self, problem: str) -> str:
        return f"the process {problem}: {last_line(self.log)}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        with suppress(OSError):
            self._write.close()
        os.close(self._read)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def run_command(arguments: list[str], folder: Path, log: Path, seconds: float) -> float:
    """Run Python in a checkout, and return its wall time in seconds.

    Raises:
        WorkerError: If it fails or takes too long; the message has the last line that it wrote.
    """
    start = time.monotonic()
    environment = {**os.environ, **_python_path(folder)}
    try:
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603
                [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=max(seconds, 1), check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"not finished after {seconds:.0f} s: {last_line(log)}") from error
    if done.returncode:
        raise WorkerError(last_line(log))
    return time.monotonic() - start


def last_line(log: Path) -> str:
    """Return the last line of a log that holds an error or, without one, any text."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no output"])[-1][:300]


def _python_path(folder: Path) -> dict[str, str]:
    # The checkout first: this process's own path must not lend another commit its packages.
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(STANDALONE), *given])}
