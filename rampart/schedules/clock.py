"""Clock of a run: the time that its schedules read."""

import math
from dataclasses import dataclass

ROUNDING = 1e-6  # of a step; sums of paces round


@dataclass
class Clock:
    """Time in optimizer steps that the schedules of a run read.

    It is the number of the run's own steps until it is moved: by :meth:`set_to`, or by a pace other than 1. A moved
    clock should reach the end together with the run, see :meth:`catch_up`.

    Attributes:
        steps_per_epoch: Optimizer steps per epoch, for schedules that advance with the epoch.
        end: Length of the run in optimizer steps; infinite if it is unknown.
        step: Optimizer steps of the run so far.
        offset: Time minus ``step``.
        pace: Time that the next step takes; 0 stops the clock.
    """

    steps_per_epoch: int = 1
    end: float = math.inf
    step: int = 0
    offset: float = 0.0
    pace: float = 1.0

    @property
    def time(self) -> float:
        """Time at which the next step starts."""
        return self.step + self.offset

    @property
    def moved(self) -> bool:
        """True if time is not the number of the run's steps, or will not be after the next step."""
        return self.offset != 0 or self.pace != 1

    @property
    def whole(self) -> int:
        """Zero-based optimizer step that schedules are at."""
        return math.floor(self.time + ROUNDING)

    def advance(self, step: int) -> None:
        """Set the number of steps of the run; the time advances by the pace for each."""
        self.offset += (self.pace - 1) * (step - self.step)
        self.step = step

    def set_to(self, time: float) -> None:
        """Set the time, in optimizer steps."""
        self.offset = time - self.step

    def catch_up(self) -> float:
        """Return the pace from here on with which the clock ends with the run; 1 if the run's end is unknown."""
        if self.end == math.inf or self.step >= self.end or self.offset == 0:
            return 1.0
        return (self.end - self.time) / (self.end - self.step)

    def count_ticks(self, in_epochs: bool) -> int | None:
        """Return how often a schedule should have advanced; None if it advances with the run.

        Args:
            in_epochs: The schedule advances after each epoch, at the present time; False: after the next step, before
                the clock has advanced.
        """
        if not self.moved:
            return None
        if in_epochs:
            return math.floor((self.time + ROUNDING) / self.steps_per_epoch)
        return math.floor(self.time + self.pace + ROUNDING)
