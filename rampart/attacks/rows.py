"""Rows of a batch that are still attacked, while others are done."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rampart.kernels import StepRunner
from rampart.kernels.state import list_tensors, map_state, map_tensors

CHECKED_EVERY = 10
"""Steps between two looks at how many rows are done, on an accelerator, where each look makes the host wait."""

SMALLEST = 64
"""Least number of rows of a state on an accelerator; fewer would not take less time."""


class Rows(Protocol):
    """State of a step whose tensors have one entry per image in the first dimension, or no dimensions.

    Attributes:
        index: ``(M,)``, int64, zero-based index of each row's image in the batch.
        done: ``(M,)``, bool, True for the rows that no step may change any more.
    """

    index: Tensor
    done: Tensor


State = TypeVar("State", bound=Rows)


class ActiveRows(Generic[State]):
    """Run steps on the rows of a batch that are not done, and collect the results of all rows.

    On a CPU, rows leave the state at once when they are done. On an accelerator, counting rows makes the host wait, and
    a recorded step has a fixed shape. There the state shrinks seldom, to one of few sizes: the rows of the batch, half
    of them, a quarter and so on. Rows that are done fill the rest.

    Args:
        runner: Runner of the step.
        state: State of the whole batch; ``done`` marks the rows that are not to be attacked.
        results: Names of the state's fields to collect.

    Attributes:
        results: The collected tensors of the whole batch by name, complete after :meth:`collect`.
    """

    def __init__(self, runner: StepRunner[State], state: State, results: Sequence[str]) -> None:
        self._runner, self._at_once, self._steps = runner, reads_are_free(state.done.device), 0
        self.results: dict[str, Any] = {name: map_tensors(getattr(state, name), torch.clone) for name in results}
        self._runner.state = state
        self.any_left = self._shrink()
        if self.any_left and self._runner.state is state:
            self._runner.load(state)

    @property
    def state(self) -> State:
        """State of the rows that are attacked; change it only in place."""
        return self._runner.state

    def run(self, step: Callable[[State], None] | None = None) -> bool:
        """Run one step.

        Args:
            step: Another step, which is called, such as a first step that differs from the others; the runner's if
                None.

        Returns:
            False if all rows are known to be done.
        """
        if step is None:
            self._runner.run()
        else:
            step(self.state)
        self._steps += 1
        if self._at_once or self._steps % CHECKED_EVERY == 0:
            self.any_left = self._shrink()
        return self.any_left

    def collect(self) -> dict[str, Any]:
        """Return the results of the whole batch by name."""
        self._store(self.state, slice(None))
        return self.results

    def _shrink(self) -> bool:
        """Drop rows that are done; return False, without dropping any, if all are done."""
        state = self.state
        rows = len(state.done)
        left = rows - int(state.done.sum())
        size = left if self._at_once else smallest_size(left, rows)
        if size == rows or left == 0:
            return left > 0
        if self._at_once:
            self._store(state, state.done.nonzero().squeeze(1))
            kept = (~state.done).nonzero().squeeze(1)
        else:
            self._store(state, slice(None))
            kept = state.done.to(torch.uint8).argsort(stable=True)[:size]
        self._runner.load(map_state(state, lambda tensor: _take_rows(tensor, kept) if tensor.ndim else tensor))
        return True

    def _store(self, state: State, rows: Tensor | slice) -> None:
        index = state.index[rows]
        for name, result in self.results.items():
            for whole, part in zip(list_tensors(result), list_tensors(getattr(state, name)), strict=True):
                whole.index_copy_(0, index, part[rows])


def reads_are_free(device: torch.device) -> bool:
    """Return True if the host reads values on a device without waiting for it, as on a CPU."""
    return device.type == "cpu"


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of a tensor, in its memory format."""
    taken = tensor[rows]
    return taken if taken.stride()[1:] == tensor.stride()[1:] else torch.empty_like(tensor[: len(rows)]).copy_(taken)


def smallest_size(left: int, rows: int) -> int:
    """Return the smallest allowed number of rows that holds ``left`` of them: ``rows`` halved some times.

    Args:
        left: Number of rows that are not done.
        rows: Number of rows now.
    """
    while (half := -(-rows // 2)) >= max(left, SMALLEST):
        rows = half
    return rows
