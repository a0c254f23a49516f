"""Phases of a run, and the eps of each optimizer step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

from rampart.attacks.eps import Eps, parse_eps, parse_number, to_fraction

Shape: TypeAlias = Literal["constant", "linear", "cosine", "smoothed"]


@dataclass(frozen=True)
class Phase:
    """A part of a training run with its own eps.

    The first optimizer step of a phase has ``start_eps`` and the last has ``end_eps``. With ``interval: epoch`` all
    steps of an epoch share one eps, from ``start_eps`` in the first epoch to ``end_eps`` in the last.

    Attributes:
        end_eps: Eps at the end of the phase, on the pixel scale, such as ``0.4`` or ``"8/255"``.
        start_eps: Eps at the start of the phase; ``end_eps`` if None.
        epochs: Length in epochs. Give either this or ``train_steps``.
        train_steps: Length in optimizer steps.
        shape: Curve from start to end. ``"constant"`` needs both to be equal. ``"cosine"`` is flat at both ends.
            ``"smoothed"`` is that of certified training (Shi et al. 2021): it rises with the fourth power of the time
            in the first quarter of the phase, and from there on linearly, without a kink.
        interval: Change eps with every optimizer step or with every epoch.
        steps: Number of attack steps during this phase; the attack's own setting if None.
        step_size: Step size of the attack during this phase; the attack's own setting if None.

    Raises:
        ValueError: If a value is out of range or the fields contradict each other.
    """

    end_eps: Eps
    start_eps: Eps | None = None
    epochs: int | None = None
    train_steps: int | None = None
    shape: Shape = "linear"
    interval: Literal["step", "epoch"] = "step"
    steps: int | Literal["paper"] | None = None
    step_size: Eps | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.train_steps is None):
            raise ValueError(f"a phase needs either epochs or train_steps, got {self}")
        if self.length < 1:
            unit = "epochs" if self.train_steps is None else "train_steps"
            raise ValueError(f"a phase's {unit} must be at least 1, got {self.length}")
        if self.interval == "epoch" and self.epochs is None:
            raise ValueError("interval: epoch needs a length in epochs, got train_steps")
        for name, allowed in (("shape", get_args(Shape)), ("interval", ("step", "epoch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        start, end = self._ends()
        if self.shape == "constant" and start != end:
            raise ValueError(f"shape: constant needs start_eps equal to end_eps, got {start} and {end}")
        if self.step_size is not None and parse_number(self.step_size, "step_size") <= 0:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")

    @property
    def length(self) -> int:
        """Length in epochs or, if ``train_steps`` is given, in optimizer steps."""
        length = self.train_steps if self.epochs is None else self.epochs
        assert length is not None
        return length

    @property
    def needs_steps_per_epoch(self) -> bool:
        """True if eps depends on the number of optimizer steps per epoch."""
        start, end = self._ends()
        return self.epochs is not None and self.interval == "step" and start != end

    def eps_at(self, update: int, updates: int) -> float:
        """Return eps at one position within the phase.

        Args:
            update: Zero-based epoch or optimizer step, as ``interval`` says; clipped to the last.
            updates: Number of epochs or optimizer steps of the phase.
        """
        start, end = self._ends()
        if updates <= 1 or update >= updates - 1:
            return end
        if self.shape == "cosine":
            return start + (end - start) * (1 - math.cos(math.pi * update / (updates - 1))) / 2
        if self.shape == "smoothed":
            return start + (end - start) * _smoothed(update / (updates - 1))
        return _linear(start, end, update, updates - 1)

    def _ends(self) -> tuple[float, float]:
        return _parse_ends(self.start_eps, self.end_eps)


@lru_cache(typed=True)
def _parse_ends(start_eps: Eps | None, end_eps: Eps) -> tuple[float, float]:
    # The upper bound depends on the norm, which only the attack knows: EpsilonRampCallback checks it.
    end = parse_eps(end_eps, "L2", "end_eps")
    return end if start_eps is None else parse_eps(start_eps, "L2", "start_eps"), end


@lru_cache
def _fractions(start: float, end: float) -> tuple[int, int, int]:
    """Return integers ``a, b, c`` with start = a / c and end = b / c, for the decimal numbers that are shown."""
    first, last = to_fraction(start), to_fraction(end)
    common = math.lcm(first.denominator, last.denominator)
    return int(first * common), int(last * common), common


def _linear(start: float, end: float, part: int, parts: int) -> float:
    """Return ``start + (end - start) part / parts``, in whole numbers, so that 0.01 x 7 is 0.07, not 0.0700...01."""
    first, last, common = _fractions(start, end)
    return (first * parts + (last - first) * part) / (common * parts)


def _smoothed(time: float) -> float:
    """Return the curve from 0 to 1 that Shi et al. 2021 train with: ``a time^4`` up to 1/4, then a straight line.

    Equal values and slopes at 1/4, and the value 1 at 1, give a = 256 / 13 and the line.
    """
    return 256 * time**4 / 13 if time < 1 / 4 else (16 * time - 3) / 13


def eps_schedule(
    phases: Sequence[Phase], epoch: int, step_in_epoch: int, steps_per_epoch: int, global_step: int
) -> tuple[Phase, float]:
    """Return the phase and the eps of an optimizer step, as a pure function of progress.

    Args:
        phases: Phases in order, with lengths all in epochs or all in optimizer steps.
        epoch: Zero-based epoch.
        step_in_epoch: Zero-based optimizer step within the epoch.
        steps_per_epoch: Number of optimizer steps per epoch.
        global_step: Zero-based optimizer step within the run; phases in ``train_steps`` use this one alone.
    """
    progress = global_step if phases[0].epochs is None else epoch
    for phase in phases[:-1]:
        if progress < phase.length:
            break
        progress -= phase.length
    else:
        phase = phases[-1]
    if phase.epochs is None or phase.interval == "epoch":
        return phase, phase.eps_at(progress, phase.length)
    return phase, phase.eps_at(progress * steps_per_epoch + step_in_epoch, phase.epochs * steps_per_epoch)
