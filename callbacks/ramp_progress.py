"""Progress of an epsilon ramp that is adaptive or was set back: its clock, its limit and its measurements."""

import math
from dataclasses import asdict
from typing import Any

import torch.distributed
import torch.nn.functional as F
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks.host_copy import HostCopy
from callbacks.run_length import count_steps, count_steps_per_epoch
from rampart.schedules import AdaptiveRamp, Clock, EpsLimit, RampPace

EVERY = 10
"""Optimizer steps between two measurements."""


class RampProgress:
    """Clock of a run's schedules, and the limit of an adaptive ramp, which rises by what it measures.

    Args:
        adaptive: Settings of an adaptive ramp; None for eps by the clock alone, until the ramp is set back.

    Attributes:
        clock: Clock of the schedules.
    """

    def __init__(self, adaptive: AdaptiveRamp | None) -> None:
        self.adaptive, self.clock = adaptive, Clock()
        self._pace: RampPace | None = None
        self._limit: EpsLimit | None = None
        self._risen = 0.0  # optimizer steps in which the limit rose
        self._largest = math.inf  # eps of a ramp that has ended before its target
        self._more_steps, self._times_set_back = 0, 0
        self._batch_counts: Tensor | None = None  # of this process's batches since the last optimizer step
        self._counts: Tensor | None = None  # of all processes since the last measurement
        self._measured: HostCopy | list[float] | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def limited(self) -> bool:
        """True if eps or the attack may differ from the schedule's."""
        return self._limit is not None or self._more_steps > 0

    @property
    def rising(self) -> bool:
        """True while the limit has neither reached its end nor stopped before it."""
        return self._limit is not None and self._risen < self._limit.length and self._largest == math.inf

    def start(self, trainer: Trainer, module: Any, target_eps: float) -> None:
        """Start at the first step of a run, or where a checkpoint was saved.

        Args:
            trainer: Trainer of the run.
            module: Module to train.
            target_eps: Eps at which the limit of an adaptive ramp ends.

        Raises:
            TypeError: If the ramp is adaptive and the module lacks ``last_step``.
            ValueError: If the ramp is adaptive and the length of the run is unknown.
        """
        end = count_steps(trainer)
        self.clock = module.clock = Clock(max(count_steps_per_epoch(trainer), 1), end, trainer.global_step)
        if self.adaptive is not None and target_eps > 0:
            if not hasattr(module, "last_step"):
                raise TypeError(f"ramp.adaptive reads `last_step`, which {type(module).__name__} lacks")
            if end == math.inf:
                raise ValueError("ramp.adaptive needs the length of the run: set trainer.max_epochs or max_steps")
            self._begin(self.adaptive, 0.0, target_eps, int(end) - trainer.global_step)
        if self._restored is not None:
            self._restore(self._restored)

    def begin_step(self) -> None:
        """Set the pace of the clock for the next optimizer step."""
        pace = self._pace
        # Before eps rises at all the network may need the clock to learn: a warm-up of the learning rate.
        begun = self.rising and self._risen > 0
        stops = begun and pace is not None and pace.settings.lr_waits and pace.waits
        self.clock.pace = 0.0 if stops else self.clock.catch_up()

    def limit_eps(self, eps: float) -> float:
        """Return the eps of the next step: that of the schedule, up to the limit."""
        limit = math.inf if self._limit is None else self._limit.eps_at(self._risen)
        return min(eps, limit, self._largest)

    def strengthen(self, attack: Any) -> Any:
        """Return an attack with the additional steps."""
        return attack.with_settings(steps=attack.steps + self._more_steps) if self._more_steps else attack

    def end_batch(self, trainer: Trainer, module: Any) -> None:
        """Count correct predictions under attack, and advance the clock after an optimizer step."""
        rising, step = self.rising, module.last_step if self.rising else None
        if step is not None:
            correct = (step.logits.argmax(1) == step.labels).sum().view(1)
            counts = torch.cat([correct, F.one_hot(step.labels, step.logits.shape[1]).sum(0)])
            self._batch_counts = counts if self._batch_counts is None else self._batch_counts + counts
        if trainer.global_step == self.clock.step:
            return
        self.clock.advance(trainer.global_step)
        if rising and self._batch_counts is not None:
            self._measure(trainer)
            assert self._pace is not None
            self._risen += not self._pace.waits
            if not self.rising:
                self._report(trainer)

    def finish(self, trainer: Trainer) -> None:
        """Print the eps at the end of a run, if it was still rising: the run was short, or its time was over."""
        if self.rising:
            self._report(trainer)

    def set_back(
        self, trainer: Trainer, time: float, eps: float, target_eps: float, rising_steps: int, more_steps: int
    ) -> None:
        """Continue from an earlier time, with an eps that rises adaptively from a lower value.

        Each time it rises more slowly, and more slowly than the schedule.

        Args:
            trainer: Trainer of the run, between two optimizer steps.
            time: Time of the clock, in optimizer steps.
            eps: Eps to start from.
            target_eps: Eps at which the limit ends.
            rising_steps: Optimizer steps in which the schedule reaches it.
            more_steps: Additional attack steps.
        """
        settings, clock = self.adaptive or AdaptiveRamp(), self.clock
        clock.advance(trainer.global_step)
        clock.set_to(time)
        rest = clock.end - clock.step if clock.end < math.inf else max(clock.step, 100 * EVERY)
        self._more_steps += more_steps
        self._times_set_back += 1
        self._begin(settings, eps, target_eps, int(rest), rising_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in plain values."""
        pace, measured = self._pace, self._measured
        return {
            "offset": self.clock.offset,
            "pace": None if pace is None else pace.state_dict(),
            "limit": None if self._limit is None else asdict(self._limit),
            "risen": self._risen,
            "largest": None if self._largest == math.inf else self._largest,
            "more_steps": self._more_steps,
            "times_set_back": self._times_set_back,
            "counts": None if self._counts is None else self._counts.tolist(),
            "measured": measured.read() if isinstance(measured, HostCopy) else measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the start."""
        self._restored = state

    def _restore(self, state: dict[str, Any]) -> None:
        self._restored = None
        self.clock.offset = float(state["offset"])
        if state["pace"] is not None and state["limit"] is not None:
            self._pace = RampPace(self.adaptive or AdaptiveRamp())
            self._pace.load_state_dict(state["pace"])
            self._limit = EpsLimit(**state["limit"])
        self._risen = float(state["risen"])
        self._largest = math.inf if state["largest"] is None else float(state["largest"])
        self._more_steps, self._times_set_back = int(state["more_steps"]), int(state["times_set_back"])
        self._counts = None if state["counts"] is None else torch.tensor(state["counts"])
        self._measured = state["measured"]

    def _begin(self, settings: AdaptiveRamp, eps: float, target_eps: float, rest: int, rising_steps: int = 0) -> None:
        length = settings.length(rest, rising_steps, self._times_set_back)
        self._limit = EpsLimit(eps, target_eps, length)
        self._pace = RampPace(settings, self.clock.step, rest)
        self._risen, self._largest = 0.0, math.inf
        self._batch_counts = self._counts = self._measured = None

    def _measure(self, trainer: Trainer) -> None:
        """Add the counts of a step over all processes; decide after each tenth step, by the ten steps before it."""
        counts, self._batch_counts = self._batch_counts, None
        assert counts is not None
        assert self._pace is not None
        if trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts
        if trainer.global_step % EVERY:
            return
        measured, self._measured, self._counts = self._measured, HostCopy(self._counts), None
        if measured is not None:
            correct, *labels = measured.read() if isinstance(measured, HostCopy) else measured
            chance = max(labels) / sum(labels)
            skill = (correct / sum(labels) - chance) / max(1 - chance, 1e-6)
            self._pace.update(skill, trainer.global_step, EVERY)
            if self._pace.ended and self._limit is not None:
                self._largest = self._limit.eps_at(self._risen)

    def _report(self, trainer: Trainer) -> None:
        """Say that eps has reached its target, or stays at a smaller value."""
        assert self._limit is not None
        at, largest = f"at step {trainer.global_step}", min(self._limit.eps_at(self._risen), self._largest)
        if largest == math.inf:
            rank_zero_info(f"Adaptive ramp: eps reached {self._limit.end_eps:.4g} {at}.")
        else:
            assert self._pace is not None
            reason = "the network could not follow further" if self._pace.gave_up else "the end of the run was near"
            rank_zero_info(
                f"Adaptive ramp: the largest eps of this run is {largest:.4g}, below its target "
                f"{self._limit.end_eps:.4g}: {reason} {at}."
            )
