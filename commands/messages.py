"""One-line error messages, and filters for warnings that do not apply to this project."""

import errno
import logging
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

from commands.parse_errors import explain

LONGEST = 400


def describe(error: BaseException) -> str:
    """Return an error as one line of limited length, with the error's type if the message is only a value."""
    message = str(error) if isinstance(error, ArgumentError) else explain(str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = (
            f"{error.filename or 'the disk of --runs_dir'} could not be written ({error.strerror}): free disk space"
        )
    if not message and isinstance(error, NotImplementedError):
        message = f"{_find_raising_function(error)} is not implemented"
    elif isinstance(error, LookupError) or " " not in message:
        message = f"{type(error).__name__}: {message}".removesuffix(": ")
    return one_line(message)


def one_line(message: str) -> str:
    """Join the lines of a message, and cut out the middle if it is longer than LONGEST characters."""
    text = " ".join(message.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 130]} [...] {text[-120:]}"


def _find_raising_function(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "a function" if trace is None else trace.tb_frame.f_code.co_name


def is_lost_process(text: str) -> bool:
    """Return True for a communication error that means that another process of the run has ended."""
    return bool(re.search(r"gloo/transport|closed by peer|reset by peer|NCCL|TCPStore|DistNetworkError", text))


def silence_warnings() -> None:
    """Silence warnings that do not apply to this project."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # On a machine of a cluster, outside its jobs too.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # Without validation images there is no validation, and that was configured.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Images that the sampler repeats to make all shares equal are counted once.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    # Lightning assumes that the user forgot to set `step`; here `step` is the default, so the user chose `epoch`.
    warnings.filterwarnings("ignore", message=".*OneCycleLR.*'interval': 'epoch'.*")
    # ModelCheckpoint warns at every resume; RunCheckpoint restores the best score itself.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # A run that continues in its own folder says so.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    rank_zero_log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    rank_zero_log.addFilter(lambda record: "litlogger" not in record.getMessage())


def command_line(*arguments: str, start: Sequence[str] = ("python",)) -> str:
    """Return a command of ``cli.py``, quoted for a shell.

    Args:
        arguments: Command and options.
        start: Words before ``cli.py``.
    """
    program = Path(sys.argv[0])
    return shlex.join([*start, str(program) if program.name == "cli.py" else "cli.py", *arguments])
