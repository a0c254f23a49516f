"""Errors in one line, and no warning that is of no use."""

import logging
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path

from commands.parse_errors import explain

LONGEST = 400


def describe(error: BaseException) -> str:
    """Return an error as one line of sane length; a message that is a mere value gets its type before it."""
    message = str(error) if isinstance(error, ArgumentError) else explain(str(error))
    if not message and isinstance(error, NotImplementedError):
        message = f"{_function(error)} is not implemented"
    elif isinstance(error, LookupError) or " " not in message:
        message = f"{type(error).__name__}: {message}".removesuffix(": ")
    return one_line(message)


def one_line(message: str) -> str:
    """Join a message's lines, and cut out the middle of one that is too long."""
    text = " ".join(message.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 130]} [...] {text[-120:]}"


def _function(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "a function" if trace is None else trace.tb_frame.f_code.co_name


def without_noise_of_peers(text: str, advice: str) -> str:
    """Say in plain words that another process of the run has ended, which the library between them tells by sockets."""
    if not re.search(r"gloo/transport|closed by peer|reset by peer|NCCL|TCPStore|DistNetworkError", text):
        return text
    return f"another process of this run has ended, so this one can't go on{'; ' if advice else ''}{advice}"


def keep_quiet() -> None:
    """Leave out what is of no use to anyone here."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Without validation images there is no validation, which is what was asked for.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # The images that it repeats to make all processes' shares equal are counted once.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    # Lightning suspects that its default was overlooked; here the default is `step`, so `epoch` was chosen.
    warnings.filterwarnings("ignore", message=".*OneCycleLR.*'interval': 'epoch'.*")
    # Lightning's ModelCheckpoint says so at every resume; RunCheckpoint carries over what counts.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    rank_zero_log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    rank_zero_log.addFilter(lambda record: "litlogger" not in record.getMessage())


def command_line(*arguments: str) -> str:
    """Return a command of Rampart as it can be pasted into a shell, by the name that it was started by."""
    program = Path(sys.argv[0])
    start = (
        ["rampart"] if program.name == "rampart" else ["python", str(program) if program.name == "cli.py" else "cli.py"]
    )
    return shlex.join([*start, *arguments])
