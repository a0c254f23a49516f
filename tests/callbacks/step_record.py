"""Record of the optimizer steps of a training."""

from typing import Any

from pytorch_lightning import Callback, Trainer


class StepRecord(Callback):
    """Record eps, attack steps and learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.eps: list[float] = []
        self.steps: list[int] = []
        self.lr: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.eps.append(pl_module.eps)
        self.steps.append(pl_module.attack.steps)
        self.lr.append(optimizer.param_groups[0]["lr"])
