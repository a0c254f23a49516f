"""Errors and signals that end a command in one line and an exit status.

This module imports no large package at first, because start-up can fail or be interrupted too.
"""

import os
import sys
import threading
import time
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from commands.interruption import Interrupted, ends_with_torchrun, interruptible, is_first_process, say, signals
from commands.process_watch import PATIENCE, watch_parent


@contextmanager
def one_line_errors(full_trace: bool) -> Iterator[None]:
    """Print an error or a signal as one line to stderr, and exit.

    The exit status is 1, 2 for a wrong command line, or 128 plus the signal's number. Of several processes that fail
    because one has died, or because of the same error, one prints the line; all of them have ended when the first has.

    Args:
        full_trace: Raise the exception in place of printing a line.
    """
    # torch writes a trace to stderr for each lost connection; the line below says what happened.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with interruptible(), _quiet_writers():
        started = watch_parent() or ends_with_torchrun()
        try:
            yield
            _end_processes(wait=30.0)
        except Interrupted as end:
            _end_processes()
            if full_trace:
                raise
            if is_first_process():
                if not end.requeued:
                    end.advice = _return_to_queue(end.signum) or end.advice
                say(str(end))
            sys.exit(end.status)
        except Exception as error:
            signals.deferred = not started  # A signal must not interrupt the explanation.
            line = _build_line(error, started)
            _end_processes()
            if full_trace:
                raise
            if line:
                say(line)
            sys.exit(2 if isinstance(error, ArgumentError) else 1)


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Print no trace of TensorBoard's thread for a full disk: the next record raises the error in the main thread."""
    before = threading.excepthook

    def print_others(failure: threading.ExceptHookArgs) -> None:
        if not (issubclass(failure.exc_type, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
            before(failure)

    threading.excepthook = print_others
    try:
        yield
    finally:
        threading.excepthook = before


def _end_processes(wait: float = 0.0) -> None:
    """End the processes that this one has started, after up to ``wait`` seconds in which they end by themselves."""
    if signals.watch is not None:
        if wait:
            signals.watch.wait(wait)
        signals.watch.end_all(5.0)


def _return_to_queue(signum: int) -> str:
    from commands.requeue import requeue

    return requeue(signum, signals.progress)


def _build_line(error: Exception, started: bool) -> str:
    """Return the line for an error; empty if the first process prints one.

    Args:
        error: The error.
        started: True if the first process or torchrun ends this one with a signal if the first process fails too.
    """
    from commands.messages import describe, is_lost_process

    if signals.watch is not None:
        signals.watch.stop()
    if signals.received:
        if not is_first_process():
            return ""
        return str(Interrupted(signals.received, _return_to_queue(signals.received) or signals.advice))
    text = describe(error)
    if isinstance(error, OSError) and signals.command:
        text = f"{text}; {signals.advice}"
    lost = is_lost_process(text)
    if started:
        try:
            time.sleep(2 * PATIENCE if lost or ends_with_torchrun() else 1.0)  # this process may be about to be ended
        except Interrupted:
            return ""
        return "" if lost else f"error: {text}"
    if not lost:
        return f"error: {text}"
    found = signals.watch.describe_lost(PATIENCE) if signals.watch is not None else ""
    return f"error: {found or 'another process of this run has ended, so the run has ended'}; {signals.advice}"
