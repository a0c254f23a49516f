"""The steps of one PGD run."""

from typing import Literal, NamedTuple, TypeAlias

StepSchedule: TypeAlias = Literal["constant", "linear"]


class Step(NamedTuple):
    """One step of a run.

    Attributes:
        number: Zero-based number of the step.
        length: Length on the pixel scale.
    """

    number: int
    length: float


def plan_steps(count: int, length: float, schedule: StepSchedule) -> list[Step]:
    """List the steps of a run; see :class:`rampart.attacks.PGD` for the arguments.

    Args:
        count: Number of steps.
        length: Length of the first step.
        schedule: ``"constant"``, or ``"linear"`` for shrinking steps.
    """
    linear = schedule == "linear"
    return [Step(number, length * (1 - number / count) if linear else length) for number in range(count)]
