"""The checkpoint that a command line names, checked before anything is computed."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from commands.checkpoint_io import newest_whole
from rampart.files.weight_files import ordinary_file

KEYWORDS = ("best", "last", "hpc", "registry")


def check_ckpt_path(path: Any, weights_only: bool | None) -> str | None:
    """Return the named file's path, in a form that Lightning takes for nothing else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, one of Lightning's keywords, an address on the net, or files are to be unpickled.
    """
    if weights_only is False:
        raise ValueError("weights_only must be true or left out, got false: nothing in a file is ever executed here")
    if path is None:
        return None
    text = str(path)
    if not text:
        raise ValueError("ckpt_path must be a file's path, got an empty one: leave the option out, or name a file")
    if Path(text).is_file():
        # A file of the name `last` or `registry/...` would be taken for the keyword.
        return str(Path(text).absolute()) if text.lower().startswith(KEYWORDS) else text
    if "://" in text:
        raise ValueError(f"ckpt_path must be a file on this machine, got {text!r}: download it first")
    if text.split(":")[0].lower() in KEYWORDS:
        raise ValueError(
            f"ckpt_path must be a file, got {text!r}: every run has a folder of its own, "
            "such as runs/NAME/fit-0/checkpoints/last.ckpt"
        )
    if Path(text).is_dir():
        found = newest_whole(Path(text).rglob("*.ckpt"))
        if found:
            raise ValueError(f"ckpt_path must be a file, got the folder {text}, such as {shlex.quote(str(found))}")
    return str(ordinary_file(text))


def check_init_from(init_from: str | None, ckpt_path: str, typed: Sequence[str]) -> None:
    """Say that a resumed run keeps its own weights; refuse a command line that asks for both.

    Raises:
        ValueError: If ``--ramp.init_from`` was typed: in a config it is how the resumed run began.
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
def suggesting_whole_ones(path: str | None) -> Iterator[None]:
    """Name the newest whole checkpoint beside one that turns out to be broken.

    Raises:
        ValueError: The one raised inside, with the path of the other checkpoint.
    """
    try:
        yield
    except ValueError as error:
        broken = any(word in str(error) for word in ("damaged or truncated", "is empty"))
        other = newest_whole(Path(path).parent.glob("*.ckpt")) if path and broken and Path(path).is_file() else None
        if other is None:
            raise
        raise ValueError(
            f"{error}; the newest whole checkpoint beside it: --ckpt_path {shlex.quote(str(other))}"
        ) from error
