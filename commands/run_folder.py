"""The folder of a run, the same for all of its processes."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from callbacks import RunCheckpoint
from commands.checkpoint_io import WholeFileIO
from commands.run_checkpoints import FOLDER_KEY

FOLDER_VARIABLE = "RAMPART_RUN_FOLDER"
"""Environment variable with the run's folder, for processes that the first process starts."""


def create_run_folder(
    runs_dir: str, name: str, subcommand: str, find: Callable[[Path], Path | None] = lambda _: None
) -> Path:
    """Return the folder of a run, a new one unless the run has one already.

    Only the run's first process creates it. Processes that it starts read it from the environment. Processes that
    torchrun or SLURM start get it from :class:`RunFolderCallback` at set-up; until then their path is a placeholder in
    the same parent folder.

    Args:
        runs_dir: Folder of all runs.
        name: Name of the experiment.
        subcommand: Command; it begins the folder's name.
        find: Function that gets the folder of the experiment's runs, and returns the folder of the run that is
            continued; None for a new run.

    Raises:
        ValueError: If the name is a path, or the folder can't be created.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a folder's name without a path, got {name!r}: put the path into runs_dir")
    if not runs_dir.strip():
        raise ValueError(f"runs_dir must be a folder's path, got {runs_dir!r}: use . for the current folder")
    parent = Path(runs_dir) / name
    if not starts_run():
        known = os.environ.get(FOLDER_VARIABLE)
        return Path(known) if known else parent / f"{subcommand}-of-rank-0"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = find(parent) or _create(parent, subcommand)
    except OSError as error:
        raise ValueError(f"runs_dir: no folder can be created in {parent}: {error.strerror}") from error
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove the folder after an error inside the context, if nothing was written to it."""
    try:
        yield
    except Exception:
        if starts_run():
            with suppress(OSError):
                folder.rmdir()
        raise


def read_number(folder: Path, subcommand: str) -> int:
    """Return the number in the name of a run's folder; -1 for another folder."""
    found = re.fullmatch(rf"{subcommand}-(\d+)", folder.name)
    return int(found[1]) if found else -1


def starts_run() -> bool:
    """Return True in the run's first process: rank 0 of the first machine."""
    on_first_machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    return bool(rank_zero_only.rank == 0) and on_first_machine  # type: ignore[attr-defined]


class RunFolderCallback(Callback):
    """Send the folder of rank 0 to all ranks, and the checkpoint that training resumes from.

    Args:
        folder: Folder of the run in this process.
        continued: True if the folder has the files of an earlier process of this run.

    Attributes:
        checkpoint: File that ``fit`` resumes from; None for a new run.
        files: Checkpoints of the run's earlier processes.
    """

    def __init__(self, folder: Path, continued: bool = False) -> None:
        self.folder, self.continued = folder, continued
        self.checkpoint: str | None = None
        self.files: list[Path] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Get the folder and the checkpoint from rank 0, by the first collective operation of the run."""
        runner: Any = trainer
        known = self.folder
        told = trainer.strategy.broadcast((self.folder, self.continued, self.checkpoint, self.files))
        self.folder, self.continued, self.checkpoint, self.files = told
        runner.run_folder, runner.resume_path = self.folder, self.checkpoint
        if Path(trainer.default_root_dir) == known:
            runner._default_root_dir = str(self.folder)
        if self.continued and stage == TrainerFn.FITTING:
            self._adopt_checkpoints(trainer)

    def _adopt_checkpoints(self, trainer: Trainer) -> None:
        """Let the run replace and remove the checkpoints that its earlier processes wrote."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.adopt(self.files)
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, WholeFileIO):
            writer.adopt(self.files)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Add the run's folder to the checkpoint; write the curves to disk, for a run that resumes from it."""
        checkpoint[FOLDER_KEY] = str(self.folder.resolve())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()


def _create(parent: Path, subcommand: str) -> Path:
    # A number is not used again after its folder was removed: the newest run has the highest.
    number = max((read_number(folder, subcommand) for folder in parent.glob(f"{subcommand}-*")), default=-1) + 1
    while True:
        folder = parent / f"{subcommand}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
