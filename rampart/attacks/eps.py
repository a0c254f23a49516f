"""Parse perturbation sizes such as ``8/255`` exactly."""

import math
from fractions import Fraction
from typing import Literal, TypeAlias

NormName: TypeAlias = Literal["Linf", "L2"]
"""Name of a norm: the largest change of a pixel, or the Euclidean length of the change."""

Eps: TypeAlias = float | str
"""A size on the pixel scale [0, 1]: a number, or a fraction such as ``"8/255"``."""


def parse_number(value: float | str, name: str) -> float:
    """Parse a number or a fraction of two numbers (``"8/255"``, ``"2.5/7"``).

    Raises:
        ValueError: If the value is not a finite number.
    """
    if type(value) is float and math.isfinite(value):
        return value
    problem = f"{name} must be a number or a fraction such as 8/255, got {' '.join(repr(value).split())}"
    try:
        if isinstance(value, str):
            parts = [Fraction(part.strip()) for part in value.split("/")]
            if len(parts) > 2:
                raise ValueError(problem)
            number = float(math.prod([parts[0], *(1 / part for part in parts[1:])]))
        elif isinstance(value, bool):
            raise ValueError(problem)
        else:
            number = float(value)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError):
        raise ValueError(problem) from None
    if not math.isfinite(number):
        raise ValueError(problem)
    return number


def parse_eps(value: Eps, norm: NormName = "Linf", name: str = "eps") -> float:
    """Parse an eps and check its range for the norm.

    Args:
        value: Radius on the pixel scale, such as ``0.4`` or ``"8/255"``.
        norm: ``"Linf"`` allows [0, 1]; ``"L2"`` allows every size from 0.
        name: Name of the value in error messages.

    Raises:
        ValueError: If the value is not a number or is outside the norm's range.
    """
    eps = parse_number(value, name)
    if eps < 0 or (norm == "Linf" and eps > 1):
        allowed = "in [0, 1] for the norm Linf" if norm == "Linf" else "at least 0"
        hint = f"; did you mean {eps:g}/255?" if 1 < eps <= 255 else ""
        raise ValueError(f"{name} must be {allowed} (pixel scale, images are in [0, 1]), got {value}{hint}")
    return eps


def format_eps(eps: Eps) -> str:
    """Return an eps as papers write it: ``8/255`` if six digits of a decimal are not enough."""
    if isinstance(eps, str):
        return eps
    short = f"{eps:g}"
    if not math.isclose(float(short), eps) and math.isclose(round(eps * 255) / 255, eps):
        return f"{round(eps * 255)}/255"
    return short


def to_fraction(value: float) -> Fraction:
    """Return the simplest fraction near a float: 0.18 gives 9/50, 8/255 gives 8/255.

    Users type eps as a decimal or a multiple of 1/255. In float arithmetic a rounding error may change a truncated
    number of attack steps by one.
    """
    return Fraction(value).limit_denominator(1_000_000)
