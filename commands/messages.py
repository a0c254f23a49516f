"""Errors in one line, and no warning that is of no use."""

import logging
import shlex
import sys
import warnings
from pathlib import Path


def one_line(message: str) -> str:
    """Reduce jsonargparse's tree of tried types to the branch that says what is wrong."""
    noise = (
        "Does not validate against any",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Given value",
        "Expected a path",
    )
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    return f"{text} (--print_config shows the accepted ones)" if text.endswith("is not accepted") else text


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
