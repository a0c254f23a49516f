"""Threads of the processes of a run that share a machine's cores."""

import os
import platform
from collections.abc import Sequence

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

Place = tuple[str, frozenset[int]]
"""Name of a machine, and the cores of it that a process may use."""


class ThreadsCallback(Callback):
    """Give each process its part of the cores, so that processes on one machine don't wait for one another's threads.

    Lightning divides the cores that a process may use by the number of processes per node. That is too few if SLURM has
    bound each task to its own cores, and too many if two nodes are one machine. A number in OMP_NUM_THREADS is used as
    it is.
    """

    def __init__(self) -> None:
        self._given = "OMP_NUM_THREADS" in os.environ  # Lightning sets it, too, before ``setup``.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Set torch's number of threads. A collective operation."""
        if trainer.world_size == 1:
            return
        mine = find_place()
        everyone: list[Place] = [mine] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
        if not self._given:
            torch.set_num_threads(count_threads(mine, everyone))


def find_place() -> Place:
    """Return this machine, and the cores that this process may use."""
    find = getattr(os, "sched_getaffinity", None)  # not on macOS
    return platform.node(), frozenset(find(0) if find else range(os.cpu_count() or 1))


def count_threads(mine: Place, everyone: Sequence[Place]) -> int:
    """Return the number of threads of a process, at least 1: each core counts as its part per process that may use it.

    Args:
        mine: Machine and cores of the process.
        everyone: Those of all processes of the run, this one included.
    """
    machine, cores = mine
    there = [other for name, other in everyone if name == machine]
    return max(1, int(1e-9 + sum(1 / sum(core in other for other in there) for core in cores)))
