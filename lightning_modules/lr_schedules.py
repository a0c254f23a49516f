"""Learning-rate schedules, whose number of steps can be set to the length of the run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]
# The tuple is first, else jsonargparse would write a list into the saved config as if it were a single factory.
SchedulerFactories: TypeAlias = tuple[SchedulerFactory, ...] | SchedulerFactory | None
Interval: TypeAlias = Literal["step", "epoch"]

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Names of the settings of torch's schedules for their length; -1 means the length of the run."""


@dataclass(frozen=True)
class LRSchedules:
    """Settings of the learning-rate schedules; the fields are described in :class:`AdversarialClassifier`."""

    factories: SchedulerFactories = None
    interval: Interval = "step"
    milestones: Sequence[float] | None = None
    monitor: str | None = None

    def configure(self, optimizer: Optimizer, trainer: Trainer) -> list[dict[str, Any]]:
        """Build the schedules, in the form that ``configure_optimizers`` returns.

        Raises:
            ValueError: If a schedule can't have its length, the milestones don't increase within the run, or
                ReduceLROnPlateau has no metric.
        """
        factories = (self.factories,) if callable(self.factories) else self.factories or ()
        configs = []
        for schedule in build_schedules(
            factories, self.milestones, optimizer, partial(_require_run_length, trainer, self.interval)
        ):
            settings: dict[str, Any] = {"interval": self.interval}
            if isinstance(schedule, ReduceLROnPlateau):
                settings = _plateau_settings(schedule, self.monitor, trainer)
            configs.append({"scheduler": schedule, **settings})
        return configs


def check_schedules(trainer: Trainer) -> None:
    """Check at the start of training that the schedules suit the run.

    Raises:
        ValueError: If a schedule ends before the run and can't be stepped further, or watches a validation metric in a
            run without validation.
    """
    no_validation = not trainer.enable_validation or (
        trainer.val_dataloaders is not None and not any(trainer.num_val_batches)
    )
    for config in trainer.lr_scheduler_configs:
        if no_validation and config.reduce_on_plateau and (config.monitor or "").startswith("val/"):
            raise ValueError(
                f"ReduceLROnPlateau watches {config.monitor}, but the run has no validation: hold out images "
                "(data.val_size), or watch train/adv_acc"
            )
        length = compute_run_length(trainer, config.interval)  # type: ignore[arg-type]
        if length is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_length(config.scheduler, length, f"{config.interval}s")


def check_monitors(trainer: Trainer) -> None:
    """Check after a validation that it measured the metrics that schedules watch.

    Raises:
        ValueError: If a schedule watches a validation metric that was not measured.
    """
    for config in trainer.lr_scheduler_configs:
        monitor = config.monitor or ""
        if config.reduce_on_plateau and monitor.startswith("val/") and monitor not in trainer.callback_metrics:
            known = ", ".join(name for name in sorted(trainer.callback_metrics) if name.startswith("val/"))
            raise ValueError(f"ReduceLROnPlateau watches {monitor}, which is not measured; validation measures {known}")


def build_schedules(
    factories: Sequence[SchedulerFactory],
    milestones: Sequence[float] | None,
    optimizer: Optimizer,
    run_length: Callable[[], int],
) -> list[LRScheduler]:
    """Build schedules that apply at the same time or, with milestones, one after the other.

    Args:
        factories: Functions that build a schedule from the optimizer. A length of -1, or a missing length of
            OneCycleLR, becomes the length of the run, or of the schedule's part of it.
        milestones: Ends of all schedules but the last: numbers of steps, or fractions of the run if below 1.
        optimizer: Optimizer whose learning rate is changed.
        run_length: Returns the length of the run in the schedules' unit; called only if it is needed.

    Returns:
        One schedule per factory, or a single one if there are milestones.

    Raises:
        ValueError: If the milestones don't increase within the run, or a schedule can't have its length.
    """
    if milestones is None:
        return [_build_schedule(factory, optimizer, run_length) for factory in factories]
    if len(milestones) != len(factories) - 1:
        raise ValueError(
            f"model.lr_milestones must be one fewer than the schedules in model.lr_scheduler, {len(factories)}; "
            f"got {len(milestones)}"
        )
    ends = [round(at * run_length()) if at < 1 else int(at) for at in milestones]
    if any(a >= b for a, b in pairwise([0, *ends])) or any(at >= 1 and at != int(at) for at in milestones):
        raise ValueError(
            "model.lr_milestones must increase: whole numbers of steps, or fractions of the run between 0 and 1; "
            f"got {', '.join(map(str, milestones))}"
        )
    lengths = [partial(_part_length, ends, run_length, i) for i in range(len(factories))]
    parts = [_build_schedule(factory, optimizer, length) for factory, length in zip(factories, lengths, strict=True)]
    return [SequentialLR(optimizer, parts, ends)]


def compute_run_length(trainer: Trainer, interval: Interval) -> int | None:
    """Return the number of times that a schedule advances in a run; None if it is unknown until the run ends."""
    if interval == "epoch":
        return trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
    batches = trainer.num_training_batches
    steps: float = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if batches != math.inf and trainer.max_epochs not in (None, -1):
        steps = min(steps, sum(_count_steps(trainer, epoch) for epoch in range(trainer.max_epochs)))
    return None if steps == math.inf else int(steps)


def check_length(schedule: LRScheduler, run: int, unit: str = "steps") -> None:
    """Warn if a schedule's length differs from the run's, or a change of the rate would come after the run.

    Args:
        schedule: Schedule at the start of training or of a resumed run.
        run: Length of the run in the schedule's unit.
        unit: The unit, ``"steps"`` or ``"epochs"``.

    Raises:
        ValueError: If the schedule ends before the run and can't be stepped further, like OneCycleLR.
    """
    if isinstance(schedule, SequentialLR):
        for part, length in zip(schedule._schedulers, _part_lengths(schedule._milestones, run), strict=True):
            check_length(part, length, unit)
        return
    _warn_of_late_changes(schedule, run, unit)
    name = next((name for name in LENGTHS if hasattr(schedule, name)), None)
    if name is None or not isinstance(schedule, (OneCycleLR, CosineAnnealingLR, PolynomialLR, LinearLR)):
        return
    length = getattr(schedule, name)
    # A linear warm-up ends before the run.
    if length == run or (length < run and isinstance(schedule, LinearLR)):
        return
    problem = (
        f"lr_scheduler {type(schedule).__name__} has {name} {length}, but this run has {run} {unit}{{}}; set {name} to "
        "-1 for the run's length"
    )
    if length < run and isinstance(schedule, OneCycleLR):
        raise ValueError(problem.format(", and it can't be stepped after its end"))
    after = "the schedule does not reach its end" if length > run else "the schedule ends before the run"
    rank_zero_warn(problem.format(f": {after}"), category=UserWarning)


def _warn_of_late_changes(schedule: LRScheduler, run: int, unit: str) -> None:
    """Warn if a schedule with its own numbers of steps would change after the run: more devices, fewer steps."""
    name, least = "", 0
    if isinstance(schedule, MultiStepLR):
        name, least = "milestones", max(schedule.milestones, default=0) + 1
    elif isinstance(schedule, StepLR):
        name, least = "step_size", schedule.step_size + 1
    elif isinstance(schedule, CosineAnnealingWarmRestarts):
        name, least = "T_0", schedule.T_0
    if least > run:
        rank_zero_warn(
            f"lr_scheduler {type(schedule).__name__} has {name} for a run of at least {least} {unit}, but this run has "
            f"{run}: change them, or give several schedules and model.lr_milestones as fractions of the run",
            category=UserWarning,
        )


def _plateau_settings(schedule: ReduceLROnPlateau, monitor: str | None, trainer: Trainer) -> dict[str, Any]:
    monitor = monitor or getattr(schedule, "monitor", None)
    if not monitor:
        raise ValueError("ReduceLROnPlateau needs the metric to watch: set model.lr_monitor, such as val/robust_acc")
    if monitor.endswith("_acc") and schedule.mode == "min":
        rank_zero_warn(
            f"ReduceLROnPlateau watches {monitor}, an accuracy, with mode min, and would reduce the learning rate "
            "while the accuracy rises: set mode to max",
            category=UserWarning,
        )
    every = trainer.check_val_every_n_epoch if monitor.startswith("val/") else 1
    return {"interval": "epoch", "frequency": every or 1, "monitor": monitor, "strict": every is not None}


def _require_run_length(trainer: Trainer, interval: Interval) -> int:
    """Return the length of the run, for a schedule whose length is -1."""
    if interval == "step":
        trainer.fit_loop.setup_data()
    length = compute_run_length(trainer, interval)
    if trainer.ckpt_path is not None:
        # Lightning sets the loaders' states when it sets them up, but has not read these from the checkpoint yet.
        trainer.fit_loop._combined_loader = None
    if length is None:
        raise ValueError(
            "model.lr_scheduler needs the length of the run, which is unknown until it ends: set trainer.max_steps, or "
            "the schedule's own length"
        )
    return max(length, 10) if trainer.fast_dev_run else length  # type: ignore[attr-defined]


def _build_schedule(factory: SchedulerFactory, optimizer: Optimizer, run_length: Callable[[], int]) -> LRScheduler:
    if isinstance(factory, partial):
        # The class is the function of a partial, or among its arguments if jsonargparse made it.
        made: tuple[Any, ...] = (factory.func, *factory.args)
        given = factory.keywords
        one_cycle = any(isinstance(part, type) and issubclass(part, OneCycleLR) for part in made)
        if one_cycle and given.get("total_steps") in (None, -1) and not given.get("epochs"):
            return _build_one_cycle(factory, optimizer, run_length())
    schedule = factory(optimizer)
    for name in LENGTHS:
        # torch's schedules read their length only after the first step.
        if getattr(schedule, name, None) == -1:
            setattr(schedule, name, run_length())
    return schedule


def _build_one_cycle(factory: "partial[LRScheduler]", optimizer: Optimizer, length: int) -> LRScheduler:
    try:
        return factory(optimizer, total_steps=length)
    except ZeroDivisionError:
        raise ValueError(f"OneCycleLR needs more than {length} steps to rise and fall: train longer") from None


def _count_steps(trainer: Trainer, epoch: int) -> int:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return math.ceil(trainer.num_training_batches / callback.get_accumulate_grad_batches(epoch))
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def _part_lengths(ends: Sequence[int], run: int) -> list[int]:
    return [b - a for a, b in pairwise([0, *ends, run])]


def _part_length(ends: Sequence[int], run_length: Callable[[], int], i: int) -> int:
    return _part_lengths(ends, run_length())[i]
