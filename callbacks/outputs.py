"""Output paths and figure logging for callbacks."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_warn

from rampart.files import provenance, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, and create it if needed.

    Unlike ``trainer.log_dir`` it involves no communication, so a single rank may call it.
    """
    logger = trainer.logger
    default = logger.log_dir if isinstance(logger, TensorBoardLogger) else trainer.default_root_dir
    folder = Path(getattr(trainer, "run_folder", None) or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_file(folder: Path, stem: str, suffix: str) -> Path:
    """Return a path in the folder that does not exist yet: ``stem.suffix``, then ``stem-1.suffix`` and so on."""
    path, number = folder / f"{stem}{suffix}", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def describe_evaluation(trainer: Trainer, module: Any) -> dict[str, Any]:
    """Return the provenance of an evaluation's numbers; call it when the evaluation starts."""
    with module.execution.evaluation(module.device.type):
        return provenance(module.device, module.image_dtype, trainer.world_size, str(trainer.precision))


def save_figure(trainer: Trainer, tag: str, figure: "Figure", name: str | None = None) -> Path:
    """Write a figure as PNG, log it to TensorBoard under ``tag``, and return the PNG's path."""
    path = new_file(run_folder(trainer), name or tag, ".png")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_whole(path, picture.getvalue())
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, global_step=trainer.global_step)
            logger.experiment.flush()
    return path


@contextmanager
def warn_if_not_drawn(figure: str) -> Iterator[None]:
    """Turn any error in drawing a figure into one line of warning, since a figure must not end a run.

    Args:
        figure: Name of the figure for the warning.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        rank_zero_warn(f"{figure} could not be drawn, the run continues: {type(error).__name__}: {reason}")
