"""Checks of a trainer's settings that adversarial training depends on."""

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from rampart.objectives import Objective


def check_precision(trainer: Trainer) -> None:
    """Refuse a precision that rounds the images.

    Raises:
        ValueError: If the trainer's precision is ``16-true``, ``bf16-true`` or a transformer engine's.
    """
    if trainer.precision in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"trainer.precision {trainer.precision} rounds images by more than a small eps: use bf16-mixed, "
            "16-mixed or 32-true"
        )


def check_accumulation(trainer: Trainer, objective: Objective) -> None:
    """Refuse gradient accumulation if the objective can't sum the gradients of several batches.

    Raises:
        ValueError: If the run accumulates several batches with such an objective, or the trainer's number is below 1.
    """
    if trainer.accumulate_grad_batches < 1:
        raise ValueError(f"trainer.accumulate_grad_batches must be at least 1, got {trainer.accumulate_grad_batches}")
    batches = _largest_accumulation(trainer)
    if batches > 1 and not objective.accumulates:
        raise ValueError(
            f"{objective} can't sum the gradients of several batches: set trainer.accumulate_grad_batches to 1, "
            f"got {batches}"
        )


def _largest_accumulation(trainer: Trainer) -> int:
    """Return the largest number of batches between two optimizer steps of the run."""
    schedules = [c.scheduling for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return max(trainer.accumulate_grad_batches, *(max(schedule.values()) for schedule in schedules), 1)
