"""Agreement between the processes of a run on signals and on saves, before the same batch."""

import time

import torch
from pytorch_lightning import Trainer

from callbacks import RunCheckpoint
from commands.interruption import signals

SECONDS = 1.0
"""Seconds between two agreements of several processes; one batch, if that takes longer."""


class Agreement:
    """Tell all processes, before the same batch, of a signal that ends the run and of a save that is due.

    All ranks have to end and to save together, because both are collective operations, but a signal may reach one
    process only, and clocks differ. So they reduce three numbers: the signal, the save that is due by rank 0's clock,
    and the seconds per batch. All ranks get the same maxima, and compute from the seconds the same number of batches
    until the next agreement. An agreement costs a communication and, on a GPU, a wait for all work that is queued
    there, so there is one per second, not one per batch. A single process has nobody to ask: it looks at each batch.
    """

    def __init__(self) -> None:
        self._batches, self._interval = 0, 0  # since the last agreement, and until the next
        self._since = time.monotonic()

    def before_batch(self, trainer: Trainer, checkpoint: RunCheckpoint | None, between_steps: bool) -> tuple[int, int]:
        """Count a batch. A collective operation on some batches, which are the same on all ranks.

        Args:
            trainer: Trainer of this run.
            checkpoint: The run's callback, or None if it has no checkpoints.
            between_steps: False if gradients of earlier batches are accumulated, which are in no checkpoint: an
                agreement waits until they are used.

        Returns:
            The number of a signal that any process has received, and the result of ``find_due_save`` on rank 0; 0 if
            there is none, or if this is no batch of an agreement.
        """
        result = 0, 0
        if between_steps and (trainer.world_size == 1 or self._batches >= self._interval):
            due = checkpoint.find_due_save() if checkpoint is not None and trainer.is_global_zero else 0
            per_batch = (time.monotonic() - self._since) / max(self._batches, 1)
            signum, save, seconds = find_maxima(trainer, signals.received, due, per_batch)
            self._batches, self._interval = 0, max(1, int(SECONDS / max(seconds, 1e-6)))
            self._since = time.monotonic()
            result = int(signum), int(save)
        self._batches += 1
        return result


def find_maxima(trainer: Trainer, *values: float) -> tuple[float, ...]:
    """Return the largest of each value over all processes. A collective operation."""
    if trainer.world_size == 1:
        return values
    numbers = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return tuple(numbers.tolist())
