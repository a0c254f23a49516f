"""Length of a run in optimizer steps."""

import math

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler


def count_steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimizer steps per epoch; 0 if it is unknown."""
    batches = trainer.num_training_batches
    return 0 if batches == math.inf else math.ceil(batches / trainer.accumulate_grad_batches)


def count_steps(trainer: Trainer) -> float:
    """Return the number of optimizer steps of a run by its limits of epochs and steps; infinity if there are none."""
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if batches == math.inf or epochs is None or epochs == -1:
        return steps
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    changes = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    if not changes:
        return min(steps, epochs * count_steps_per_epoch(trainer))
    return min(steps, sum(math.ceil(batches / changes[0].get_accumulate_grad_batches(i)) for i in range(epochs)))
