"""States of steps: dataclasses of tensors."""

from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")

TOLERANCE = 1e-3
"""Difference, relative to a tensor's largest value, below which two results of the same step count as equal."""

MANY = 16
"""Size of a tensor from which two numbers may differ by chance."""


def list_tensors(value: Any) -> list[Tensor]:
    """List the tensors of a field: a tensor, a tuple of such values, or None.

    Raises:
        TypeError: If the value is anything else.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in list_tensors(item)]
    if value is not None:
        raise TypeError(f"a state must hold tensors, tuples of tensors and None, got a {type(value).__name__}")
    return []


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a field's value with each tensor replaced by the result of a function."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return None


def state_tensors(state: object) -> list[Tensor]:
    """List the tensors of a state: a dataclass whose fields are tensors, tuples of them, or None."""
    return [tensor for field in fields(state) for tensor in list_tensors(getattr(state, field.name))]  # type: ignore[arg-type]


def map_state(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """Return a state of the same class with each tensor replaced by the result of a function."""
    return type(state)(*(map_tensors(getattr(state, field.name), function) for field in fields(state)))  # type: ignore[arg-type]


def copy_state(state: State) -> State:
    """Return a copy of a state, with the same shapes, dtypes and memory formats."""
    return map_state(state, torch.clone)


def copy_to(target: object, source: object) -> None:
    """Copy the values of a state to another one with the same shapes and dtypes, in place."""
    torch._foreach_copy_(state_tensors(target), state_tensors(source))


def describe_state(state: object) -> Hashable:
    """Return everything but the values: class, shapes, dtypes, strides and devices."""
    return type(state), *((t.shape, t.dtype, t.stride(), t.device) for t in state_tensors(state))


def largest_difference(state: object, other: object) -> float:
    """Return the largest share, over a state's tensors, of numbers that differ from those of another state.

    Numbers differ by chance where the device adds in another order, and so do signs of gradients that are nearly zero.
    Two differences in a tensor of many numbers do not count: one image of a small batch may be a borderline case.
    """
    shares = [
        ((~_equal(one, two)).sum() - (2 if one.numel() >= MANY else 0)).clamp(min=0) / one.numel()
        for one, two in zip(state_tensors(state), state_tensors(other), strict=True)
        if one.numel()
    ]
    return float(torch.stack(shares).max()) if shares else 0.0


def _equal(one: Tensor, two: Tensor) -> Tensor:
    if not one.is_floating_point():
        return one == two
    scale = torch.where(two.isfinite(), two.abs(), 0).max()
    close: Tensor = (one - two).abs() <= TOLERANCE * scale
    return close | (one == two) | (one.isnan() & two.isnan())
