"""The steps of one PGD run."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

StepSchedule: TypeAlias = Literal["constant", "linear"]


class Step(NamedTuple):
    """One step.

    Attributes:
        length: On the pixel scale.
        side: Of the blocks that it moves, in pixels.
    """

    length: float
    side: int


def plan_steps(count: int, length: float, schedule: StepSchedule, block_sides: Sequence[int]) -> list[Step]:
    """List the steps of a run; see :class:`rampart.attacks.PGD` for the arguments.

    Args:
        count: Number of steps.
        length: Of the first.
        schedule: ``"linear"`` shrinks them.
        block_sides: Spread over the run from the first to the last.
    """
    lengths = [length * (1 - step / count) if schedule == "linear" else length for step in range(count)]
    return [Step(length, block_sides[step * len(block_sides) // count]) for step, length in enumerate(lengths)]
