"""Validation of ``--ckpt_path`` and ``--ramp.init_from`` before anything is computed."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from commands.checkpoint_io import find_newest_readable
from rampart.files.weight_files import check_readable

AUTO = "auto"
"""Value of ``--ckpt_path`` with which fit returns to the newest run with the same settings."""

KEYWORDS = ("best", "last", "hpc", "registry")


def check_ckpt_path(path: Any, weights_only: bool | None) -> str | None:
    """Check the path of a checkpoint and return it, absolute if Lightning would read it as a keyword.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the path is empty, one of Lightning's keywords or a URL, or ``weights_only`` is False.
    """
    if weights_only is False:
        raise ValueError("weights_only must be true or left out, got false: nothing in a file is ever executed here")
    if path is None:
        return None
    text = str(path)
    if not text:
        raise ValueError("ckpt_path must be a file's path, got an empty one: leave out the option, or name a file")
    if Path(text).is_file():
        # Lightning reads the name `last` or `registry/...` as a keyword, but an absolute path never.
        return str(Path(text).absolute()) if text.lower().startswith(KEYWORDS) else text
    if text == AUTO:
        raise ValueError("ckpt_path auto is for fit, which it returns to a run: give another command a file's path")
    if "://" in text:
        raise ValueError(f"ckpt_path must be a file on this machine, got {text!r}: download it first")
    if text.split(":")[0].lower() in KEYWORDS:
        raise ValueError(
            f"ckpt_path must be a file, got {text!r}: every run has its own folder, "
            "such as runs/NAME/fit-0/checkpoints/last.ckpt; fit --ckpt_path auto finds the newest run itself"
        )
    if Path(text).is_dir():
        found = find_newest_readable(Path(text).rglob("*.ckpt"))
        if found:
            raise ValueError(f"ckpt_path must be a file, got the folder {text}, such as {shlex.quote(str(found))}")
    return str(check_readable(text))


def check_init_from(init_from: str | None, ckpt_path: str, typed: Sequence[str]) -> None:
    """Log that a resumed run does not use ``ramp.init_from``; refuse a command line that holds both options.

    Raises:
        ValueError: If ``--ramp.init_from`` is on the command line; in a config it describes the resumed run's start.
    """
    if init_from is None:
        return
    if any(word.partition("=")[0] == "--ramp.init_from" for word in typed):
        raise ValueError(
            f"ramp.init_from and ckpt_path exclude each other: --ckpt_path {shlex.quote(ckpt_path)} resumes a run with "
            f"its own weights, --ramp.init_from {shlex.quote(init_from)} starts a new one from these"
        )
    rank_zero_info(f"ramp.init_from {init_from} is not used: the resumed run has its own weights, from {ckpt_path}")


@contextmanager
def suggest_readable_checkpoint(path: str | None) -> Iterator[None]:
    """Add the newest readable checkpoint of the same folder to the error about a broken one.

    Raises:
        ValueError: The original error, with the path of the readable checkpoint added.
    """
    try:
        yield
    except ValueError as error:
        broken = any(word in str(error) for word in ("damaged or truncated", "is empty"))
        other = (
            find_newest_readable(Path(path).parent.glob("*.ckpt")) if path and broken and Path(path).is_file() else None
        )
        if other is None:
            raise
        raise ValueError(
            f"{error}; the newest readable checkpoint in its folder: --ckpt_path {shlex.quote(str(other))}"
        ) from error
