"""Checkpoints of a run that continues: in its own folder, or in a folder that several runs share."""

from collections.abc import Iterable
from pathlib import Path

from commands.checkpoint_io import find_newest_readable
from rampart.files.weight_files import read_checkpoint

FOLDER_KEY = "run_folder"
"""Key of a checkpoint: absolute path of the folder of the run that saved it."""

NEEDED = ("loops", "optimizer_states")
"""Keys of a checkpoint that training resumes from; a file of weights alone lacks them."""


def find_checkpoints(folder: Path, saved_in: Path | None) -> list[Path]:
    """Return the checkpoints of a run.

    Args:
        folder: Folder of the run: all checkpoints in it are the run's.
        saved_in: Folder in which the run saves them; if it is outside the run's folder, other runs may save there too.
    """
    files = sorted(folder.rglob("*.ckpt"))
    if saved_in is not None and folder.resolve() not in (saved_in.resolve(), *saved_in.resolve().parents):
        files += [file for file in sorted(saved_in.rglob("*.ckpt")) if _is_saved_by(file, folder)]
    return files


def choose_checkpoint(files: Iterable[Path], weights_only: bool = False) -> Path | None:
    """Return the checkpoint with the most training steps from which training resumes; None if there is none yet.

    Args:
        files: Checkpoints of the run, and the one that it was started from.
        weights_only: True if the run saves weights alone, from which training does not resume.

    Raises:
        ValueError: If there is none, but files that the run would replace: damaged ones, or weights alone.
    """
    files = list(files)
    if (found := find_newest_readable(files, NEEDED)) is not None:
        return found
    for file in files:
        if find_newest_readable([file]) is None:
            reason = "can't be read"
        elif weights_only:
            reason = "holds weights alone (checkpoint.save_weights_only)"
        else:  # saved by another callback
            continue
        raise ValueError(
            f"{file} {reason}, and this run has no other checkpoint to continue from: move the file away to train from "
            "the start, or leave out --ckpt_path auto to start a new run"
        )
    return None


def _is_saved_by(file: Path, folder: Path) -> bool:
    try:
        return read_checkpoint(file).get(FOLDER_KEY) == str(folder.resolve())
    except (OSError, ValueError):
        return False
