"""The epsilon ramp: the weights that training starts from, and the eps of each training batch."""

import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from callbacks.phase_checks import check_phases, check_steps_per_epoch
from callbacks.ramp_progress import RampProgress
from callbacks.run_length import count_steps_per_epoch
from rampart.files import load_weights
from rampart.schedules import AdaptiveRamp, Phase, eps_schedule


class EpsilonRampCallback(Callback):
    """Set eps before each training batch, and load initial weights before the first.

    Describes extended adversarial training and IAT (Shaeiri et al. 2020, sections 3.1 and 3.2) by a list of phases
    whose lengths add up to the run's length. Eps depends on the training progress alone, so a resumed run repeats the
    uninterrupted one. An adaptive ramp needs no phases: eps rises from 0 to the module's target while the network
    remains accurate under attack. Validation always attacks at the module's target eps. When the run ends, also by an
    error, the callback restores the module's eps and attack.

    Args:
        phases: Phases in order, with lengths all in epochs or all in optimizer steps; None keeps the module's eps.
        init_from: File of weights to start a new run from: a Lightning checkpoint, a plain state_dict or
            safetensors. Only weights are loaded: optimizer and progress start from scratch. A run that resumes a
            checkpoint keeps that checkpoint's weights.
        adaptive: Let eps rise from 0 to the module's eps as fast as the network can follow: true, or the settings of
            this ramp. With phases, eps is the smaller of the two.

    Raises:
        ValueError: If the list of phases is empty or mixes epochs and optimizer steps.
    """

    def __init__(
        self,
        phases: tuple[Phase, ...] | None = None,
        init_from: str | None = None,
        adaptive: bool | AdaptiveRamp = False,
    ) -> None:
        if phases is not None and not phases:
            raise ValueError("ramp.phases must have at least one phase, got none: leave it out for a constant eps")
        if phases and len({phase.epochs is None for phase in phases}) > 1:
            raise ValueError("ramp.phases must all have their length in epochs, or all in train_steps; got both")
        # A tuple by its annotation: a list on the command line would inherit, item by item, what it replaces.
        self.phases = phases
        self.init_from = init_from
        self.adaptive = AdaptiveRamp() if adaptive is True else adaptive or None
        self.progress = RampProgress(self.adaptive)
        self._attack: Any = None
        self._attack_of_phase: Any = None
        self._phase: Phase | None = None  # that of the last batch
        self._before: tuple[Any, Any] | None = None

    @property
    def state_key(self) -> str:
        """Key of this ramp's state in a checkpoint: a trainer may have several ramps."""
        return self._generate_state_key(phases=self.phases, adaptive=self.adaptive)

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
        self._before = pl_module.eps, pl_module.attack
        if self.phases:
            check_phases(trainer, pl_module, self.phases, self._phase_attack)

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the phases against the number of optimizer steps per epoch, and start the clock.

        Raises:
            TypeError: If the ramp is adaptive and the module lacks ``last_step``.
            ValueError: If phases in optimizer steps don't add up to a run whose length is given in epochs, eps changes
                with every step and the data loader has no length, or the ramp is adaptive in a run without a known
                length.
        """
        check_steps_per_epoch(trainer, self.phases or ())
        self.progress.start(trainer, pl_module, self._find_target())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set ``pl_module.eps``, and ``pl_module.attack`` if the phase has its own attack settings."""
        progress = self.progress
        progress.begin_step()
        if not self.phases and not progress.limited:
            return
        assert self._before is not None
        attack, eps = self._attack, self._before[0]
        if self.phases:
            phase, eps = eps_schedule(self.phases, **self._find_position(trainer, batch_idx))
            if phase is not self._phase:
                self._phase, self._attack_of_phase = phase, self._phase_attack(phase)
            attack = self._attack_of_phase
        pl_module.eps = progress.limit_eps(eps)  # type: ignore[assignment]
        pl_module.attack = progress.strengthen(attack)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the accuracy that an adaptive ramp depends on, and advance the clock after an optimizer step."""
        self.progress.end_batch(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the largest eps of an adaptive ramp that was still rising."""
        self.progress.finish(trainer)

    def set_back(self, trainer: Trainer, time: float, eps: float, more_steps: int = 0) -> None:
        """Set the ramp back: the schedules continue from an earlier time, and eps rises again, adaptively and slower.

        Args:
            trainer: Trainer of the run, between two optimizer steps.
            time: Time of the clock to continue from, see ``progress.clock``.
            eps: Eps to start again from, on the pixel scale.
            more_steps: Attack steps that every later attack makes in addition.
        """
        target = self._find_target()
        self.progress.set_back(trainer, time, eps, target, self._count_rising_steps(trainer, time, target), more_steps)

    def can_strengthen(self) -> bool:
        """Return True if the attack has a number of steps that can be raised."""
        return isinstance(getattr(self._attack, "steps", None), int) and hasattr(self._attack, "with_settings")

    def state_dict(self) -> dict[str, Any]:
        """Return what the progress of the run does not tell: the state of the clock and of an adaptive ramp."""
        return self.progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with a checkpoint's clock."""
        self.progress.load_state_dict(state_dict)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the module's eps and attack."""
        if stage == "fit":
            self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the module's eps and attack."""
        self._restore(pl_module)

    def _find_position(self, trainer: Trainer, batch_idx: int) -> dict[str, int]:
        """Return the arguments of the schedule: the progress of the run, or the time of a clock that was moved."""
        clock = self.progress.clock
        if clock.offset != 0:
            return _locate(clock.whole, clock.steps_per_epoch)
        return {
            "epoch": trainer.current_epoch,
            "step_in_epoch": batch_idx // trainer.accumulate_grad_batches,
            "steps_per_epoch": count_steps_per_epoch(trainer),
            "global_step": trainer.global_step,
        }

    def _find_target(self) -> float:
        """Return the largest eps of the run without a limit."""
        assert self._before is not None
        return max([float(self._before[0]), *(phase.eps_at(0, 1) for phase in self.phases or ())])

    def _count_rising_steps(self, trainer: Trainer, time: float, target: float) -> int:
        """Return the optimizer steps, from a time on, until the phases reach the target; 0 without phases."""
        clock, steps = self.progress.clock, 0
        while self.phases and time + steps < clock.end < math.inf:
            if eps_schedule(self.phases, **_locate(int(time) + steps, clock.steps_per_epoch))[1] >= target:
                break
            steps += 1
        return steps

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


def _locate(step: int, steps_per_epoch: int) -> dict[str, int]:
    """Return the arguments of the schedule for a zero-based optimizer step."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch)
    return {
        "epoch": epoch,
        "step_in_epoch": step_in_epoch,
        "steps_per_epoch": steps_per_epoch,
        "global_step": step,
    }
