"""A new folder for every run, which all of its processes know."""

import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

TOLD = "RAMPART_RUN_FOLDER"
"""Environment variable by which the first process tells those that it starts where the run's folder is."""


def new_run_folder(runs_dir: str, name: str, subcommand: str) -> Path:
    """Claim a folder that no run has had.

    Only the run's first process claims one. The processes that it starts read it from the environment; those that
    torchrun or SLURM start learn it at set-up, from :class:`RunFolderCallback`, and know its parent until then.

    Raises:
        ValueError: If the name holds a path, or no folder can be made there.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a folder's name without a path, got {name!r}: use runs_dir for the path")
    if not runs_dir.strip():
        raise ValueError(f"runs_dir must be a folder's path, got {runs_dir!r}: use . for the current folder")
    parent = Path(runs_dir) / name
    if not starts_run():
        told = os.environ.get(TOLD)
        return Path(told) if told else parent / f"{subcommand}-of-rank-0"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _claim(parent, subcommand)
    except OSError as error:
        raise ValueError(f"runs_dir: no folder can be made in {parent}: {error.strerror}") from error
    os.environ[TOLD] = str(folder)
    return folder


def starts_run() -> bool:
    """Return True in the run's first process: rank 0 of the first machine."""
    on_first_machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    return bool(rank_zero_only.rank == 0) and on_first_machine  # type: ignore[attr-defined]


class RunFolderCallback(Callback):
    """Tell all ranks the folder that rank 0 has claimed.

    Args:
        folder: As this process knows it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Take rank 0's folder; the first collective of the run."""
        runner: Any = trainer
        known, self.folder = self.folder, Path(trainer.strategy.broadcast(str(self.folder)))
        runner.run_folder = self.folder
        if Path(trainer.default_root_dir) == known:
            runner._default_root_dir = str(self.folder)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Bring the curves to the disk too, so that a run that resumes from the checkpoint finds them."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()


def _claim(parent: Path, subcommand: str) -> Path:
    number = 0
    while True:
        folder = parent / f"{subcommand}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
