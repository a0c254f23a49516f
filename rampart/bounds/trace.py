"""Traces: the operations that led to an interval, as a graph from the result back to the box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.bounds.interval_rules import Bounds

RELUS = {F.relu, torch.relu, Tensor.relu}


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation on bounded tensors, or the box itself.

    Operations are compared and hashed by identity.

    Attributes:
        function: The torch function, never an in-place form; None for the box. BatchNorm in train mode is recorded as
            :func:`rampart.kernels.batch_norm.normalise_by` with the statistics that it used.
        args: Its positional arguments, with an operation in place of each bounded tensor, also inside lists.
        kwargs: Its keyword arguments, in the same form.
        index: Position of this tensor in the function's result, if that is a tuple.
        bounds: Bounds on the tensor.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    index: int | None
    bounds: Bounds = field(repr=False)

    @property
    def inputs(self) -> tuple[Operation, ...]:
        """The operations whose results this one takes, in the order of the arguments; one may appear twice."""
        return tuple(_find_operations((*self.args, *self.kwargs.values())))


def _find_operations(values: Any) -> Iterator[Operation]:
    for value in values:
        if isinstance(value, Operation):
            yield value
        elif type(value) in (list, tuple):
            yield from _find_operations(value)


def list_operations(last: Operation) -> list[Operation]:
    """Return all operations that lead to one, each after those that it takes as inputs; the box is the first."""
    ordered: list[Operation] = []
    seen: set[Operation] = set()
    pending = [(last, False)]  # not recursive: networks may be deeper than Python's stack
    while pending:
        operation, inputs_done = pending.pop()
        if inputs_done:
            ordered.append(operation)
        elif operation not in seen:
            seen.add(operation)
            pending += [(operation, True), *((before, False) for before in reversed(operation.inputs))]
    return ordered


def list_relu_inputs(last: Operation) -> list[Bounds]:
    """Return the bounds of the input of each ReLU that leads to an operation, in the order of the network."""
    return [operation.inputs[0].bounds for operation in list_operations(last) if operation.function in RELUS]
