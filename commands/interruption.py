"""Ends by signal: Ctrl-C, SIGTERM, SIGHUP and, of SLURM, SIGUSR1.

Imports nothing heavy, as start-up can be interrupted too.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

GRACE_SECONDS = 15.0
"""Time that a process that is to end may take for it, outside training."""

REPEATED_SECONDS = 1.0
"""For how long the same signal counts as sent once."""

_EXIT_STATUS = 128  # plus the signal's number, as shells have it


class Interrupted(BaseException):
    """The process is to end because of a signal.

    Not an Exception, so that nothing takes it for an error of its own.

    Attributes:
        signum: The signal.
        advice: One line for the user, once it is known what can be done.
    """

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(signum)
        self.signum, self.advice = signum, advice

    @property
    def status(self) -> int:
        """Exit status of the process."""
        return _EXIT_STATUS + self.signum

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"interrupted by {name}: {self.advice or 'nothing more was written; give the command again'}"


class _Signals:
    """The signals that this process has received, and what is to be done at its end.

    Attributes:
        received: The first one's number; 0 before.
        deferred: A signal only leaves its number here, for training to end between two batches.
        advice: One line for the user on how to resume.
        launcher: Of the trainer's strategy: knows the processes that this one has started.
    """

    def __init__(self) -> None:
        self.received, self.deferred, self.advice = 0, False, ""
        self.launcher: Any = None
        self.timer: threading.Timer | None = None
        self._since = 0.0

    def handle(self, signum: int, _: FrameType | None) -> None:
        """End by an exception, or, in training, after the batch; the second signal of a kind ends at once."""
        now = time.monotonic()
        if self.received:
            # Schedulers send another signal after the first, and torchrun sends on what the terminal sends too.
            if signum == self.received and now - self._since > REPEATED_SECONDS:
                os._exit(_EXIT_STATUS + signum)
            return
        self.received, self._since = signum, now
        if not self.deferred:
            self._end_within(GRACE_SECONDS)
            raise Interrupted(signum)

    def _end_within(self, seconds: float) -> None:
        """End in any case, also if a library swallows the exception, hangs, or waits for another process."""
        self.timer = threading.Timer(seconds, os._exit, args=[_EXIT_STATUS + self.received])
        self.timer.daemon = True
        self.timer.start()


signals = _Signals()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT, SIGTERM and a closed terminal's SIGHUP raise :class:`Interrupted` in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals.__init__()  # type: ignore[misc]
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP.
    caught = [signal.Signals[name] for name in names if hasattr(signal, name)]
    if "SLURM_JOB_ID" in os.environ:
        caught.append(signal.SIGUSR1)
    # What the process was started with to ignore, as by nohup, stays ignored.
    before = {each: signal.getsignal(each) for each in caught}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, signals.handle)
    try:
        yield
    finally:
        if signals.timer is not None:
            signals.timer.cancel()
        signals.received, signals.deferred = 0, False  # A later run in this process is another's.
        for each, handler in before.items():
            if handler is not None:
                signal.signal(each, handler)


def end_children(seconds: float = 5.0) -> None:
    """End the processes that this one has started, by force where they don't end by themselves."""
    processes = list(getattr(signals.launcher, "procs", None) or ())
    spare_from_observer()
    for process in processes:
        with suppress(OSError):
            process.terminate()
    for process in processes:
        try:
            process.wait(seconds)
        except Exception:  # of subprocess, which is not imported for this
            with suppress(OSError):
                process.kill()


def spare_from_observer() -> None:
    """Keep Lightning from killing this process because those that it started have ended, as they should."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]


def is_first_process() -> bool:
    """Return True where one process is to speak for all of a run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def say(line: str) -> None:
    """Write a line to stderr, below a progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    with suppress(OSError):
        if tqdm is None:
            print(line, file=sys.stderr, flush=True)
        else:
            tqdm.tqdm.write(line, file=sys.stderr)
