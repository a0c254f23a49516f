"""Copies of a healthy training in memory, to which a collapsed one returns."""

import copy
from dataclasses import dataclass, fields
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.averaged_weights import AveragedWeights


@dataclass
class HealthyState:
    """Weights, optimizer and schedules of a training between two optimizer steps.

    Attributes:
        step: Optimizer steps of the run so far.
        time: Time of the schedules' clock, in optimizer steps.
        eps: Eps of the step before it; 0 before the first.
        module: The module's tensors by name.
        optimizers: State of each optimizer.
        schedulers: State of each learning-rate schedule.
        average: State of averaged weights; None if there are none.
    """

    step: int
    time: float
    eps: float
    module: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    average: dict[str, Any] | None

    @classmethod
    def copy_from(cls, trainer: Trainer, module: LightningModule, time: float, eps: float) -> "HealthyState":
        """Copy a training, on the device of its weights.

        Args:
            trainer: Trainer of the run, between two optimizer steps.
            module: Module that is trained.
            time: Time of the schedules' clock.
            eps: Eps of the last step.
        """
        average = _find_average(trainer)
        return cls(
            trainer.global_step,
            time,
            eps,
            {name: tensor.detach().clone() for name, tensor in module.state_dict().items()},
            [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
            [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            None if average is None else average.copy_average(),
        )

    def restore(self, trainer: Trainer, module: LightningModule) -> None:
        """Return to this state; the run's progress, its order of images and random numbers are not changed."""
        module.load_state_dict(self.module)
        for optimizer, state in zip(trainer.optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))  # which it would change in place
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
        average = _find_average(trainer)
        if average is not None and self.average is not None:
            average.restore_average(module, self.average)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in tensors and plain values.

        The module's tensors are pairs with their names: by name, they would be found as weights of the checkpoint.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"module": list(self.module.items())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "HealthyState":
        """Return the state of :meth:`state_dict`."""
        return cls(**state | {"module": dict(state["module"])})


def _find_average(trainer: Trainer) -> AveragedWeights | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, AveragedWeights)), None)
