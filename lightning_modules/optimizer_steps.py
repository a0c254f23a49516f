"""Optimizer of a module and its learning-rate schedules, which can follow the clock of an epsilon ramp."""

from typing import Any, Protocol

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_modules.lr_schedules import LRSchedules, check_monitors
from lightning_modules.optimizers import OptimizerFactory, build_optimizer


class ScheduleClock(Protocol):
    """Clock that learning-rate schedules follow."""

    def count_ticks(self, in_epochs: bool) -> int | None:
        """Return how often a schedule has advanced after this step; None if it advances with the run."""


class OptimizerSteps(LightningModule):
    """Optimizer and learning-rate schedules of a module."""

    network: nn.Module

    clock: ScheduleClock | None = None
    """Clock that the learning-rate schedules follow, set by an epsilon ramp; None: the progress of the run."""

    def set_optimizer(self, factory: OptimizerFactory, decay_norm_and_bias: bool, schedules: LRSchedules) -> None:
        """Set what :meth:`configure_optimizers` builds.

        Args:
            factory: Function that builds the optimizer from the parameters.
            decay_norm_and_bias: Apply weight decay to all parameters; False spares biases and those of BatchNorm.
            schedules: Settings of the learning-rate schedules.
        """
        self._optimizer, self._decay_norm_and_bias, self._schedules = factory, decay_norm_and_bias, schedules

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its learning-rate schedules, if there are any.

        Raises:
            ValueError: If a setting of the optimizer or of a schedule is out of its range.
        """
        optimizer = build_optimizer(self._optimizer, self.network, self._decay_norm_and_bias)
        return [optimizer], self._schedules.configure(optimizer, self.trainer)  # type: ignore[return-value]

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Advance a schedule: once, or as often as the clock says if an epsilon ramp has moved it."""
        ticks = None
        if self.clock is not None and not isinstance(scheduler, ReduceLROnPlateau):
            ticks = self.clock.count_ticks(in_epochs=self._schedules.interval == "epoch")
        if ticks is None:
            super().lr_scheduler_step(scheduler, metric)
            return
        while scheduler.last_epoch < ticks:
            scheduler.step()  # type: ignore[call-arg]  # ReduceLROnPlateau, which has a metric, is no such schedule

    def on_validation_end(self) -> None:
        """Check that the metrics that learning-rate schedules watch were measured, also after the sanity check."""
        if self.trainer.state.fn == "fit":
            check_monitors(self.trainer)
