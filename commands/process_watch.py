"""Watch over the processes of a run on one machine: if one of them dies, all of them end, with one line.

A process that has lost another one waits in a collective operation: in a run's first one for half an hour, and on GPUs
in any. So the first process watches those that it has started, and they watch it. Launchers that start all processes
themselves, such as torchrun and srun, end them themselves.

This module imports no large package, because start-up is watched too.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from commands.interruption import say, signals

PARENT_VARIABLE = "RAMPART_PARENT"
"""Environment variable of a process that the first one has started: the first one's process number."""

PERIOD = 0.2
"""Seconds between two looks."""

PATIENCE = 3.0
"""Seconds in which a process may end by itself, with its own message, after another one died."""


class Process(Protocol):
    """A started process, such as subprocess.Popen."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class ChildWatch(threading.Thread):
    """Thread of the first process that ends the run if a process that it has started fails.

    Args:
        processes: Processes that this one has started.
        first_rank: Global rank of the first of them; the others follow.
    """

    def __init__(self, processes: Sequence[Process], first_rank: int) -> None:
        super().__init__(daemon=True, name="child-watch")
        self.processes, self.first_rank = processes, first_rank
        self._stopped = threading.Event()

    def run(self) -> None:
        """Wait for a failure, give this process time to end by itself, then end all."""
        while not self._stopped.wait(PERIOD):
            lost = self.describe_lost()
            if lost and not self._stopped.wait(PATIENCE):
                say(f"error: {lost}; {signals.advice}")
                self.end_all(1.0)
                os._exit(1)

    def stop(self) -> None:
        """Do nothing more: this process ends or saves by itself."""
        self._stopped.set()

    def describe_lost(self, seconds: float = 0.0) -> str:
        """Return a clause on the first process that failed, waiting for one up to ``seconds``; empty if none did."""
        end = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self.processes, self.first_rank):
                if status := process.poll():
                    return f"process {rank} of this run {_describe_end(status)}, so the run has ended"
            if time.monotonic() >= end:
                return ""
            time.sleep(PERIOD)

    def end_all(self, seconds: float) -> None:
        """Terminate the processes; kill those that do not end within ``seconds``."""
        self.stop()
        for process in self.processes:
            with suppress(OSError):
                process.terminate()
        self.wait(seconds)
        for process in self.processes:
            with suppress(OSError):
                process.kill()

    def wait(self, seconds: float) -> None:
        """Wait until all processes have ended, up to ``seconds``."""
        end = time.monotonic() + seconds
        for process in self.processes:
            with suppress(Exception):  # subprocess.TimeoutExpired, without importing subprocess
                process.wait(max(0.0, end - time.monotonic()))


def watch_parent() -> bool:
    """Start to watch the first process, if that has started this one; return True if it has."""
    parent = os.environ.pop(PARENT_VARIABLE, "")  # not for the processes that this one starts
    if not parent:
        return False
    threading.Thread(target=_end_with_parent, args=[int(parent)], daemon=True, name="parent-watch").start()
    return True


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    if signals.received:
        os._exit(128 + signals.received)
    if os.environ.get("LOCAL_RANK") == "1":  # one of the processes prints the line
        say(f"error: process 0 of this run was killed, so the run has ended; {signals.advice}")
    os._exit(1)


def _describe_end(status: int) -> str:
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with status {status}"
    return f"was killed by {name}{' (often for lack of memory)' if name == 'SIGKILL' else ''}"
