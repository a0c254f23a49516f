"""Outputs of callbacks: files in the run's own folder, and TensorBoard where it is a logger."""

from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, made if need be; unlike ``trainer.log_dir`` it may be asked for by one rank alone."""
    logger = trainer.logger
    default = logger.log_dir if isinstance(logger, TensorBoardLogger) else trainer.default_root_dir
    folder = Path(getattr(trainer, "run_folder", None) or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_file(folder: Path, stem: str, suffix: str) -> Path:
    """A path in the folder that no file has yet: ``stem.suffix``, then ``stem-1.suffix`` and so on."""
    path, number = folder / f"{stem}{suffix}", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def save_figure(trainer: Trainer, tag: str, figure: "Figure", name: str | None = None) -> Path:
    """Write a figure as PNG, and to TensorBoard under ``tag``."""
    path = new_file(run_folder(trainer), name or tag, ".png")
    figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, global_step=trainer.global_step)
            logger.experiment.flush()
    return path
