"""Best checkpoints of the run that is resumed: their scores in its checkpoint, and their files."""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def find_state(checkpoint: Mapping[str, Any], monitor: str | None, mode: str) -> dict[str, Any]:
    """Return the state of the checkpoint callback with this monitor and mode; its intervals may differ."""
    states = checkpoint.get("callbacks")
    for key, state in states.items() if isinstance(states, Mapping) else ():
        own = str(key).startswith(("RunCheckpoint", "ModelCheckpoint"))
        if own and isinstance(state, Mapping) and state.get("monitor") == monitor and repr(mode) in str(key):
            return dict(state)
    return {}


def read_scores(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the saved scores by path, without NaN."""
    found = state.get("best_k_models")
    pairs = list(found.items()) if isinstance(found, Mapping) else []
    pairs.append((state.get("best_model_path"), state.get("best_model_score")))
    scores: dict[str, float] = {}
    for path, score in pairs:
        if isinstance(path, str) and path and isinstance(score, (int, float, Tensor)):
            number = float(score) if not isinstance(score, Tensor) or score.numel() == 1 else math.nan
            if not math.isnan(number):
                scores[path] = number
    return scores


def find_file(resumed: Path, path: str, saved_in: Any) -> Path | None:
    """Find a file by its name in the folder of the resumed checkpoint; return None if there is none.

    Args:
        resumed: Path of the resumed checkpoint.
        path: Path of the file as recorded in that checkpoint; only its name is used.
        saved_in: Folder of checkpoints as recorded in that checkpoint; the name may include folders below it.
    """
    name = Path(path).name
    if isinstance(saved_in, str) and Path(path).is_relative_to(saved_in):
        name = str(Path(path).relative_to(saved_in))
    # Earlier versions saved on SLURM's signal to a file one folder above the others.
    for folder in (resumed.parent, resumed.parent / "checkpoints", *resumed.parent.parents[:1]):
        file = folder / name
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            return file
    return None


def link_into(file: Path, folder: Path) -> Path:
    """Link a file into a folder, under another name if its own is taken, and return the link's path."""
    link = folder / file.name
    while link.exists():
        link = link.with_name(f"{link.stem}-resumed{link.suffix}")
    folder.mkdir(parents=True, exist_ok=True)
    _link_or_copy(file, link)
    return link


def replace_by_link(file: Path, link: Path) -> None:
    """Make ``link`` another name of a file in place of the file that has it, at no moment without one."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    _link_or_copy(file, temporary)
    temporary.replace(link)


def _link_or_copy(file: Path, link: Path) -> None:
    """Make ``link`` another name of a file; copy the file where the disk has no hard links."""
    try:
        os.link(file.resolve(), link)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, link)
