"""Signals that end a run: Ctrl-C, SIGTERM, SIGHUP and, under SLURM, SIGUSR1.

This module imports no large package, because start-up can be interrupted too.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.process_watch import ChildWatch

GRACE_SECONDS = 15.0
"""Seconds that an interrupted process may take to end, outside training."""

REPEATED_SECONDS = 1.0
"""Seconds within which a repeated signal counts as one."""

_EXIT_STATUS = 128  # plus the signal's number, as in shells


class Interrupted(BaseException):
    """Raised to end the process because of a signal.

    Not an Exception, so that no code handles it as an error.

    Attributes:
        signum: The signal.
        advice: One line that tells the user how to resume; empty if nothing can be resumed.
        requeued: True if the job has been returned to its scheduler's queue, or that was tried.
    """

    def __init__(self, signum: int, advice: str = "", requeued: bool = False) -> None:
        super().__init__(signum)
        self.signum, self.advice, self.requeued = signum, advice, requeued

    @property
    def status(self) -> int:
        """Exit status of the process."""
        return _EXIT_STATUS + self.signum

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"interrupted by {name}: {self.advice or 'nothing more was written; run the command again'}"


class _Signals:
    """State of signal handling in this process.

    Attributes:
        received: Number of the first signal received; 0 if there was none.
        deferred: If True, a signal is only recorded, and training ends before the next batch.
        progress: True once this process computes something that a repetition of the command continues.
        command: Command that resumes the run; empty if nothing can be resumed.
        checkpoint: Path of the checkpoint that the command names, which may not have been written yet.
        watch: Watch over the processes that this one has started; None if it has started none.
    """

    def __init__(self) -> None:
        self.received, self.deferred, self.progress = 0, False, False
        self.command = self.checkpoint = ""
        self.watch: ChildWatch | None = None
        self.timer: threading.Timer | None = None
        self._since = 0.0

    @property
    def advice(self) -> str:
        """One line for the user on how to resume."""
        if self.command and os.path.exists(self.checkpoint):
            return f"resume with: {self.command}"
        return "nothing was saved yet; run the command again" if self.command else "run the command again"

    def handle(self, signum: int, _: FrameType | None) -> None:
        """Raise Interrupted, or in training record the signal; the same signal again ends the process at once."""
        now = time.monotonic()
        if self.received:
            # Schedulers send another signal after the first, and torchrun forwards the terminal's signal again. SLURM
            # repeats SIGTERM when the first task has ended, and ends the others by SIGKILL itself.
            repeated = signum == self.received and now - self._since > REPEATED_SECONDS
            if repeated and not (signum == signal.SIGTERM and "SLURM_JOB_ID" in os.environ):
                os._exit(_EXIT_STATUS + signum)
            return
        self.received, self._since = signum, now
        if not self.deferred:
            self._end_within(GRACE_SECONDS)
            raise Interrupted(signum)

    def _end_within(self, seconds: float) -> None:
        """End the process after a time, even if a library swallows the exception, hangs or waits."""
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
    # Signals that the process was started to ignore, as by nohup, stay ignored; SIGUSR1 is so after an earlier run.
    before = {each: signal.getsignal(each) for each in caught}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN or each.name == "SIGUSR1":
            signal.signal(each, signals.handle)
    try:
        yield
    finally:
        if signals.timer is not None:
            signals.timer.cancel()
        signals.received, signals.deferred = 0, False  # for a later run in this process
        for each, handler in before.items():
            if each.name == "SIGUSR1":
                signal.signal(each, signal.SIG_IGN)  # Its default would fail a run that is complete.
            elif handler is not None:
                signal.signal(each, handler)


def is_first_process() -> bool:
    """Return True in the one process of a run that prints messages."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def ends_with_torchrun() -> bool:
    """Return True if torchrun has started this process, and ends it if the first process of this node fails."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def say(line: str) -> None:
    """Write a line to stderr, below a progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    with suppress(OSError):
        if tqdm is None:
            print(line, file=sys.stderr, flush=True)
        else:
            tqdm.tqdm.write(line, file=sys.stderr)
