"""The epsilon ramp: the weights that training starts from, and the eps of each training batch."""

import math
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from rampart.attacks import parse_eps
from rampart.files import load_weights
from rampart.schedules import Phase, eps_schedule


class EpsilonRampCallback(Callback):
    """Set eps before each training batch, and load initial weights before the first.

    Describes extended adversarial training and IAT (Shaeiri et al. 2020, sections 3.1 and 3.2) by a list of phases
    whose lengths add up to the run's length. Eps depends on the training progress alone, so a resumed run repeats the
    uninterrupted one. Validation always attacks at the module's target eps. When the run ends, also by an error, the
    callback restores the module's eps and attack.

    Args:
        phases: Phases in order, with lengths all in epochs or all in optimizer steps; None keeps the module's eps.
        init_from: File of weights to start a new run from: a Lightning checkpoint, a plain state_dict or
            safetensors. Only weights are loaded: optimizer and progress start from scratch. A run that resumes a
            checkpoint keeps that checkpoint's weights.

    Raises:
        ValueError: If the list of phases is empty or mixes epochs and optimizer steps.
    """

    def __init__(self, phases: tuple[Phase, ...] | None = None, init_from: str | None = None) -> None:
        if phases is not None and not phases:
            raise ValueError("ramp.phases must have at least one phase, got none: leave it out for a constant eps")
        if phases and len({phase.epochs is None for phase in phases}) > 1:
            raise ValueError("ramp.phases must all have their length in epochs, or all in train_steps; got both")
        # A tuple by its annotation: a list on the command line would inherit, item by item, what it replaces.
        self.phases = phases
        self.init_from = init_from
        self._attack: Any = None
        self._attack_of_phase: Any = None
        self._phase: Phase | None = None  # that of the last batch
        self._before: tuple[Any, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the phases fit the module and the run.

        Raises:
            TypeError: If the module lacks ``eps``, ``attack`` or ``network``, or its attack the fields to set.
            ValueError: If the phases' lengths don't sum to the run's or an eps is out of range.
        """
        if stage != "fit":
            return
        for attribute in ("eps", "attack", "network"):
            if not hasattr(pl_module, attribute):
                raise TypeError(f"EpsilonRampCallback sets `{attribute}`, which {type(pl_module).__name__} lacks")
        self._attack, self._phase = pl_module.attack, None
        if self.phases:
            self._check_phases(trainer, pl_module, self.phases)
            self._before = pl_module.eps, pl_module.attack

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the initial weights, unless the run is resumed from a checkpoint.

        Raises:
            FileNotFoundError: If ``init_from`` names no file.
            ValueError: If the file can't be read safely or its weights do not fit.
        """
        # Not in setup: the trainer knows only now if it resumes. A second fit of one trainer keeps its weights.
        if self.init_from is not None and trainer.ckpt_path is None and trainer.global_step == 0:
            try:
                rank_zero_info(load_weights(pl_module.network, self.init_from))  # type: ignore[arg-type]
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error}: give ramp.init_from the file of weights that training starts from"
                ) from error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set ``pl_module.eps``, and ``pl_module.attack`` if the phase has its own attack settings."""
        if not self.phases:
            return
        accumulate = trainer.accumulate_grad_batches
        phase, eps = eps_schedule(
            self.phases,
            epoch=trainer.current_epoch,
            step_in_epoch=batch_idx // accumulate,
            steps_per_epoch=_steps_per_epoch(trainer),
            global_step=trainer.global_step,
        )
        if phase is not self._phase:
            self._phase, self._attack_of_phase = phase, self._phase_attack(phase)
        pl_module.eps, pl_module.attack = eps, self._attack_of_phase  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module's eps and attack."""
        if stage == "fit":
            self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the module's eps and attack."""
        self._restore(pl_module)

    def _restore(self, pl_module: LightningModule) -> None:
        if self._before is not None:
            pl_module.eps, pl_module.attack = self._before
            self._before = None

    def _phase_attack(self, phase: Phase) -> Any:
        if phase.steps is None and phase.step_size is None:
            return self._attack
        try:
            return self._attack.with_settings(steps=phase.steps, step_size=phase.step_size)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"ramp.phases: a phase's steps and step_size must be settings of the attack: {error}"
            ) from None

    def _check_phases(self, trainer: Trainer, pl_module: LightningModule, phases: Sequence[Phase]) -> None:
        norm = self._attack.norm
        objective: Any = getattr(pl_module, "objective", None)
        for phase in phases:
            parse_eps(phase.end_eps, norm, "end_eps")
            parse_eps(phase.end_eps if phase.start_eps is None else phase.start_eps, norm, "start_eps")
            attack = self._phase_attack(phase)
            if objective is not None:
                objective.check(attack, pl_module.network)
        in_epochs = phases[0].epochs is not None
        if in_epochs and trainer.max_steps != -1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"ramp.phases in epochs need a run in epochs, got trainer.max_steps {trainer.max_steps}: leave it out, "
                "or give the phases' lengths as train_steps"
            )
        # The number of steps per epoch is checked in on_train_start: asking for it here would set up the loaders before
        # their state is restored.
        if in_epochs or trainer.max_steps != -1:
            self._check_length(trainer, phases, trainer.max_epochs if in_epochs else trainer.max_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the phases against the number of optimizer steps per epoch.

        Raises:
            ValueError: If phases in optimizer steps don't add up to a run whose length is given in epochs, or eps
                changes with every step and the data loader has no length.
        """
        phases = self.phases or ()
        if phases and phases[0].epochs is None and trainer.max_steps == -1:
            self._check_length(trainer, phases, trainer.estimated_stepping_batches)
        if trainer.num_training_batches == math.inf and any(phase.needs_steps_per_epoch for phase in phases):
            raise ValueError(
                "ramp.phases with a length in epochs and an eps that changes by step need a data loader with a length: "
                "set interval: epoch in the phases, give their lengths as train_steps, or set "
                "trainer.limit_train_batches to a number of batches"
            )

    def _check_length(self, trainer: Trainer, phases: Sequence[Phase], run: float | None) -> None:
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


def _steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimizer steps per epoch; 0 if it is unknown, which the phases then don't need."""
    batches = trainer.num_training_batches
    return 0 if batches == math.inf else math.ceil(batches / trainer.accumulate_grad_batches)
