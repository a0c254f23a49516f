"""The learning rate's schedules, of which those that belong to a number of steps can follow the length of the run."""

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
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]
# The tuple first: jsonargparse would write a list into the saved config as if it were a single factory.
SchedulerFactories: TypeAlias = tuple[SchedulerFactory, ...] | SchedulerFactory | None
Interval: TypeAlias = Literal["step", "epoch"]

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Names of the length in torch's schedules; -1 is that of the run."""


@dataclass(frozen=True)
class LRSchedules:
    """Learning-rate schedules as a module is given them; the fields are those of :class:`AdversarialClassifier`."""

    factories: SchedulerFactories = None
    interval: Interval = "step"
    milestones: Sequence[float] | None = None
    monitor: str | None = None

    def configure(self, optimizer: Optimizer, trainer: Trainer) -> list[dict[str, Any]]:
        """Return the schedules with Lightning's settings.

        Raises:
            ValueError: If a schedule can't have the length that it is given, the milestones don't rise within the run,
                or a ReduceLROnPlateau has nothing to watch.
        """
        factories = (self.factories,) if callable(self.factories) else self.factories or ()
        configs = []
        for schedule in build_schedules(
            factories, self.milestones, optimizer, partial(_open_length, trainer, self.interval)
        ):
            settings: dict[str, Any] = {"interval": self.interval}
            if isinstance(schedule, ReduceLROnPlateau):
                settings = _plateau_settings(schedule, self.monitor, trainer)
            configs.append({"scheduler": schedule, **settings})
        return configs


def check_schedules(trainer: Trainer) -> None:
    """Compare the schedules with the run, as training begins.

    Raises:
        ValueError: If a schedule would end before the run and can't be asked further, or watches results of a
            validation that there is not.
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
        length = length_of_run(trainer, config.interval)  # type: ignore[arg-type]
        if length is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            check_length(config.scheduler, length)


def check_monitors(trainer: Trainer) -> None:
    """Check that what the schedules watch is measured, as soon as validation has measured something.

    Raises:
        ValueError: If a schedule watches a result of validation that validation does not give.
    """
    for config in trainer.lr_scheduler_configs:
        monitor = config.monitor or ""
        if config.reduce_on_plateau and monitor.startswith("val/") and monitor not in trainer.callback_metrics:
            known = ", ".join(name for name in sorted(trainer.callback_metrics) if name.startswith("val/"))
            raise ValueError(f"ReduceLROnPlateau watches {monitor}, which is not measured; validation gives {known}")


def build_schedules(
    factories: Sequence[SchedulerFactory],
    milestones: Sequence[float] | None,
    optimizer: Optimizer,
    run_length: Callable[[], int],
) -> list[LRScheduler]:
    """Build schedules that rule the rate at the same time or, with milestones, one after the other.

    Args:
        factories: Make a schedule from the optimizer. A length of -1 becomes that of the run, or of the schedule's part
            of it; so does that of a OneCycleLR that has none.
        milestones: Where one schedule ends and the next begins: numbers of steps, or shares of the run if below 1.
        optimizer: Whose rate it is.
        run_length: Tells the length of the run in the schedules' unit; asked only if it is needed.

    Returns:
        One schedule for each factory, or a single one if there are milestones.

    Raises:
        ValueError: If the milestones don't rise within the run, or a schedule can't have this length.
    """
    if milestones is None:
        return [_build(factory, optimizer, run_length) for factory in factories]
    if len(milestones) != len(factories) - 1:
        raise ValueError(
            f"model.lr_milestones must be one fewer than the schedules in model.lr_scheduler, {len(factories)}; "
            f"got {len(milestones)}"
        )
    ends = [round(at * run_length()) if at < 1 else int(at) for at in milestones]
    if any(a >= b for a, b in pairwise([0, *ends])) or any(at >= 1 and at != int(at) for at in milestones):
        raise ValueError(
            "model.lr_milestones must rise: whole numbers of steps, or shares of the run between 0 and 1; "
            f"got {', '.join(map(str, milestones))}"
        )
    stretches = [partial(_stretch, ends, run_length, i) for i in range(len(factories))]
    parts = [_build(factory, optimizer, stretch) for factory, stretch in zip(factories, stretches, strict=True)]
    return [SequentialLR(optimizer, parts, ends)]


def length_of_run(trainer: Trainer, interval: Interval) -> int | None:
    """Return how often a schedule advances in a run; None if that is not known before its end."""
    if interval == "epoch":
        return trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
    batches = trainer.num_training_batches
    steps: float = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if batches != math.inf and trainer.max_epochs not in (None, -1):
        steps = min(steps, sum(_steps_of(trainer, epoch) for epoch in range(trainer.max_epochs)))
    return None if steps == math.inf else int(steps)


def check_length(schedule: LRScheduler, run: int) -> None:
    """Compare the length that a schedule was given with the run's.

    Args:
        schedule: As training begins, resumed or not.
        run: Length of the run in the schedule's unit.

    Raises:
        ValueError: If the schedule ends before the run and can't be asked further, as OneCycleLR.
    """
    if isinstance(schedule, SequentialLR):
        for part, stretch in zip(schedule._schedulers, _stretches(schedule._milestones, run), strict=True):
            check_length(part, stretch)
        return
    name = next((name for name in LENGTHS if hasattr(schedule, name)), None)
    if name is None or not isinstance(schedule, (OneCycleLR, CosineAnnealingLR, PolynomialLR, LinearLR)):
        return
    length = getattr(schedule, name)
    # A linear warm-up is meant to end early.
    if length == run or (length < run and isinstance(schedule, LinearLR)):
        return
    problem = (
        f"lr_scheduler {type(schedule).__name__} has {name} {length}, but in this run there are {run} steps{{}}; set "
        f" {name} to -1 to follow the run's length"
    )
    if length < run and isinstance(schedule, OneCycleLR):
        raise ValueError(problem.format(", and it can't go on after its end"))
    after = "the rate does not come to its end" if length > run else "the rate comes to its end before"
    rank_zero_warn(problem.format(f": {after}"), category=UserWarning)


def _plateau_settings(schedule: ReduceLROnPlateau, monitor: str | None, trainer: Trainer) -> dict[str, Any]:
    monitor = monitor or getattr(schedule, "monitor", None)
    if not monitor:
        raise ValueError("ReduceLROnPlateau needs the metric to watch: set model.lr_monitor, such as val/robust_acc")
    if monitor.endswith("_acc") and schedule.mode == "min":
        rank_zero_warn(
            f"ReduceLROnPlateau watches {monitor}, an accuracy, with mode min, and would cut the rate while it rises: "
            "set mode to max",
            category=UserWarning,
        )
    every = trainer.check_val_every_n_epoch if monitor.startswith("val/") else 1
    return {"interval": "epoch", "frequency": every or 1, "monitor": monitor, "strict": every is not None}


def _open_length(trainer: Trainer, interval: Interval) -> int:
    """Length of the run, for a schedule that follows it."""
    if interval == "step":
        trainer.fit_loop.setup_data()
    length = length_of_run(trainer, interval)
    if trainer.ckpt_path is not None:
        # Lightning gives the loaders their state as it sets them up, and has not read it from the checkpoint yet.
        trainer.fit_loop._combined_loader = None
    if length is None:
        raise ValueError(
            "model.lr_scheduler can't follow the length of the run, which is not known before its end: set "
            "trainer.max_steps, or the schedule's own length"
        )
    return max(length, 10) if trainer.fast_dev_run else length  # type: ignore[attr-defined]


def _build(factory: SchedulerFactory, optimizer: Optimizer, run_length: Callable[[], int]) -> LRScheduler:
    if isinstance(factory, partial):
        # The class is the function of a partial, or among the arguments of one that jsonargparse made.
        made: tuple[Any, ...] = (factory.func, *factory.args)
        given = factory.keywords
        one_cycle = any(isinstance(part, type) and issubclass(part, OneCycleLR) for part in made)
        if one_cycle and given.get("total_steps") in (None, -1) and not given.get("epochs"):
            return _one_cycle(factory, optimizer, run_length())
    schedule = factory(optimizer)
    for name in LENGTHS:
        # Torch's schedules look at their length only after the first step.
        if getattr(schedule, name, None) == -1:
            setattr(schedule, name, run_length())
    return schedule


def _one_cycle(factory: "partial[LRScheduler]", optimizer: Optimizer, length: int) -> LRScheduler:
    try:
        return factory(optimizer, total_steps=length)
    except ZeroDivisionError:
        raise ValueError(f"OneCycleLR can't rise and fall in a run of {length} steps: train longer") from None


def _steps_of(trainer: Trainer, epoch: int) -> int:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return math.ceil(trainer.num_training_batches / callback.get_accumulate_grad_batches(epoch))
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def _stretches(ends: Sequence[int], run: int) -> list[int]:
    return [b - a for a, b in pairwise([0, *ends, run])]


def _stretch(ends: Sequence[int], run_length: Callable[[], int], i: int) -> int:
    return _stretches(ends, run_length())[i]
