"""Errors and signals that end a command in one line and an exit status.

This module imports no large package at first, because start-up can fail or be interrupted too.
"""

import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from commands.interruption import Interrupted, end_children, interruptible, is_first_process, say, signals


@contextmanager
def one_line_errors(full_trace: bool) -> Iterator[None]:
    """Print an error or a signal as one line to stderr, and exit.

    The exit status is 1, 2 for a wrong command line, or 128 plus the signal's number.

    Args:
        full_trace: Raise the exception in place of printing a line.
    """
    with interruptible():
        try:
            yield
        except Interrupted as end:
            end_children()
            if full_trace:
                raise
            if is_first_process():
                say(str(end))
            sys.exit(end.status)
        except Exception as error:
            end_children()
            if full_trace:
                raise
            say(_line(error))
            sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _line(error: Exception) -> str:
    from commands.messages import describe, explain_lost_process

    if signals.received:
        return str(Interrupted(signals.received, signals.advice))
    return f"error: {explain_lost_process(describe(error), signals.advice)}"
