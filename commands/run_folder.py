"""A new folder for every run, the same for all of its processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

FOLDER_VARIABLE = "RAMPART_RUN_FOLDER"
"""Environment variable with the run's folder, for processes that the first process starts."""


def create_run_folder(runs_dir: str, name: str, subcommand: str) -> Path:
    """Create a new folder for a run and return it.

    Only the run's first process creates it. Processes that it starts read it from the environment. Processes that
    torchrun or SLURM start get it from :class:`RunFolderCallback` at set-up; until then their path is a placeholder in
    the same parent folder.

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
        folder = _create(parent, subcommand)
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


def starts_run() -> bool:
    """Return True in the run's first process: rank 0 of the first machine."""
    on_first_machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    return bool(rank_zero_only.rank == 0) and on_first_machine  # type: ignore[attr-defined]


class RunFolderCallback(Callback):
    """Send the folder of rank 0 to all ranks.

    Args:
        folder: Folder of the run in this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Get the folder from rank 0, by the first collective operation of the run."""
        runner: Any = trainer
        known, self.folder = self.folder, Path(trainer.strategy.broadcast(str(self.folder)))
        runner.run_folder = self.folder
        if Path(trainer.default_root_dir) == known:
            runner._default_root_dir = str(self.folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Write the curves to disk, for a run that resumes from the checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()


def _create(parent: Path, subcommand: str) -> Path:
    number = 0
    while True:
        folder = parent / f"{subcommand}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
