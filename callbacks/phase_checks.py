"""Checks of an epsilon ramp's phases against the module and the length of the run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from callbacks.run_length import count_steps
from rampart.attacks import parse_eps
from rampart.schedules import Phase


def check_phases(
    trainer: Trainer, module: LightningModule, phases: Sequence[Phase], attack_of: Callable[[Phase], Any]
) -> None:
    """Check, before the data loaders exist, that phases fit the module and the run.

    Args:
        trainer: Trainer of the run.
        module: Module to train.
        phases: The phases.
        attack_of: Returns the attack during a phase.

    Raises:
        TypeError: If the attack lacks a field that a phase sets.
        ValueError: If an eps is out of range, or the lengths don't sum to the run's.
    """
    objective: Any = getattr(module, "objective", None)
    for phase in phases:
        attack = attack_of(phase)
        parse_eps(phase.end_eps, attack.norm, "end_eps")
        parse_eps(phase.end_eps if phase.start_eps is None else phase.start_eps, attack.norm, "start_eps")
        if objective is not None:
            objective.check(attack, module.network)
    in_epochs = phases[0].epochs is not None
    if in_epochs and trainer.max_steps != -1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ValueError(
            f"ramp.phases in epochs need a run in epochs, got trainer.max_steps {trainer.max_steps}: leave it out, "
            "or give the phases' lengths as train_steps"
        )
    # The number of steps per epoch is checked at the start of training: asking for it here would set up the loaders
    # before their state is restored.
    if in_epochs or trainer.max_steps != -1:
        _check_length(trainer, phases, trainer.max_epochs if in_epochs else trainer.max_steps)


def check_steps_per_epoch(trainer: Trainer, phases: Sequence[Phase]) -> None:
    """Check phases against the number of optimizer steps per epoch, at the start of training.

    Raises:
        ValueError: If phases in optimizer steps don't add up to a run whose length is given in epochs, or eps changes
            with every step and the data loader has no length.
    """
    if phases and phases[0].epochs is None and trainer.max_steps == -1:
        _check_length(trainer, phases, count_steps(trainer))
    if trainer.num_training_batches == math.inf and any(phase.needs_steps_per_epoch for phase in phases):
        raise ValueError(
            "ramp.phases with a length in epochs and an eps that changes by step need a data loader with a length: "
            "set interval: epoch in the phases, give their lengths as train_steps, or set "
            "trainer.limit_train_batches to a number of batches"
        )


def _check_length(trainer: Trainer, phases: Sequence[Phase], run: float | None) -> None:
    in_epochs = phases[0].epochs is not None
    unit, option = ("epochs", "max_epochs") if in_epochs else ("optimizer steps", "max_steps")
    total = sum(phase.length for phase in phases)
    if run != total and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        lengths = " + ".join(str(phase.length) for phase in phases)
        lengths += f" = {total}" if len(phases) > 1 else ""
        known = run is not None and 0 <= run < math.inf
        raise ValueError(
            f"ramp.phases must cover the run: they last {lengths} {unit}, the run "
            f"{f'lasts {run}' if known else 'has no known end'}; "
            f"change the phases or set trainer.{option} to {total}"
        )
