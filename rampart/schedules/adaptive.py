"""Adaptive ramp: eps rises while the network remains accurate under attack."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class AdaptiveRamp:
    """Settings of a ramp of eps from 0 to the target that waits for the network.

    Its measure is the network's skill on training batches: the accuracy under attack at the present eps as a share of
    what there is to gain, ``(accuracy - chance) / (1 - chance)``, where chance is the share of the most frequent class.
    All settings are shares, which fit any data, eps and length of a run.

    Attributes:
        share: Share of the run in which eps reaches the target if it never waits; at least 200 optimizer steps, since
            it takes tens of steps to see that the network can't follow, or 0.4 of a shorter run.
        least_skill: Skill below which eps waits; 0 is chance, 1 is a network without errors.
        keep: Eps waits after a sudden fall of the skill below this share of its recent average.
        patience: Share of the run that eps may wait at one value; then it stays there until the run ends.
        final: Share of the run, at its end, in which eps does not rise any more.
        lr_waits: Stop the clock of the learning rate and of phases while eps waits, once it has begun to rise;
            afterwards they catch up, so that they end with the run. False: they continue.

    Raises:
        ValueError: If a setting is not a share, or ``share`` and ``final`` are more than the run together.
    """

    share: float = 0.1
    least_skill: float = 0.05
    keep: float = 0.7
    patience: float = 0.2
    final: float = 0.2
    lr_waits: bool = False

    LEAST_STEPS: ClassVar[int] = 200

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is not bool and not 0 < value < 1:
                raise ValueError(f"ramp.adaptive.{field.name} must be above 0 and below 1, got {value}")
        if self.share + self.final > 1:
            raise ValueError(
                f"ramp.adaptive: share and final must be at most 1 together, got {self.share} + {self.final}"
            )

    def length(self, steps: float, least: float = 0, times: int = 0) -> float:
        """Return the length of a ramp that never waits, in optimizer steps.

        Args:
            steps: Optimizer steps until the end of the run.
            least: Length below which it is too short.
            times: Number of ramps before it in this run; each doubles the length.
        """
        longest = (1 - self.final) * steps
        shortest = min(self.LEAST_STEPS, longest / 2)  # In a short run, time to wait must be left.
        return max(min(max(self.share * steps, shortest, least) * 2.0**times, longest), 1.0)


@dataclass(frozen=True)
class EpsLimit:
    """Largest eps during an adaptive ramp: it rises linearly, and then there is no limit.

    Attributes:
        start_eps: Eps at the start, on the pixel scale.
        end_eps: Eps at the end.
        length: Optimizer steps from start to end in which eps does not wait.
    """

    start_eps: float
    end_eps: float
    length: float

    def eps_at(self, risen: float) -> float:
        """Return the limit after a number of optimizer steps in which it rose; infinity from the end on."""
        if risen >= self.length:
            return math.inf
        return self.start_eps + (self.end_eps - self.start_eps) * risen / self.length


class RampPace:
    """Pace of an adaptive ramp, decided by measurements of the accuracy under attack.

    Args:
        settings: Settings of the ramp.
        begin: Optimizer step at which the ramp begins.
        steps: Optimizer steps from there to the end of the run.

    Attributes:
        waits: True if eps should not rise at present.
        ended: True if eps rises no more in this run: it has waited for too long, or the run is about to end.
    """

    FAST = 0.5  # weight of a measurement in the present skill
    WINDOW = 0.05  # share of the run over which the recent average is taken

    def __init__(self, settings: AdaptiveRamp, begin: int = 0, steps: int = 1) -> None:
        self.settings, self._begin, self._steps = settings, begin, steps
        self.waits, self.ended = True, False
        self._skill, self._recent, self._waited = 0.0, 0.0, 0

    @property
    def gave_up(self) -> bool:
        """True if eps has waited at its present value for longer than ``patience`` allows."""
        return self._waited > self.settings.patience * self._steps

    def update(self, skill: float, step: int, interval: int) -> None:
        """Decide whether eps waits until the next measurement.

        Args:
            skill: Skill in the last ``interval`` steps, at most 1.
            step: Optimizer steps of the run so far.
            interval: Optimizer steps between two measurements.
        """
        settings = self.settings
        self._skill += self.FAST * (skill - self._skill)
        self._recent += min(self.FAST, interval / (self.WINDOW * self._steps)) * (self._skill - self._recent)
        self.waits = self._skill < max(settings.least_skill, settings.keep * self._recent)
        self._waited = self._waited + interval if self.waits else 0
        self.ended |= self.gave_up or step >= self._begin + (1 - settings.final) * self._steps

    def state_dict(self) -> dict[str, float]:
        """Return the state, in plain values."""
        return {
            "begin": self._begin,
            "steps": self._steps,
            "waits": self.waits,
            "ended": self.ended,
            "skill": self._skill,
            "recent": self._recent,
            "waited": self._waited,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self._begin, self._steps, self._waited = int(state["begin"]), int(state["steps"]), int(state["waited"])
        self.waits, self.ended = bool(state["waits"]), bool(state["ended"])
        self._skill, self._recent = float(state["skill"]), float(state["recent"])
