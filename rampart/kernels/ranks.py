"""Differentiable means and gathering over the processes of a distributed training."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd import Function


def count_ranks() -> int:
    """Return the number of processes that torch.distributed connects; 1 without it."""
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if connected else 1


def gather_over_ranks(values: Tensor) -> Tensor:
    """Return the tensors of all processes, stacked by rank; ``(world_size, *values.shape)``.

    All processes must call it, and go back through it if one does. The gradient is that of the sum of all processes'
    results.

    Args:
        values: Of the same shape and dtype in all processes.
    """
    ranks = torch.arange(count_ranks(), device=values.device).view(-1, *[1] * values.ndim)
    rows = torch.where(ranks == torch.distributed.get_rank(), values, 0)
    return _sum_over_ranks(rows)


def mean_over_ranks(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the mean of each tensor over all processes, by one message; see :func:`gather_over_ranks`.

    Args:
        values: Tensors of one dtype, of the same shapes in all processes.
    """
    total = _sum_over_ranks(torch.cat([tensor.flatten() for tensor in values]))
    parts = torch.split(total / count_ranks(), [tensor.numel() for tensor in values])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, values, strict=True))


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of the tensors of all processes. torch's own function with a gradient is deprecated."""
    total: Tensor = _SumOverRanks.apply(values)
    return total


class _SumOverRanks(Function):
    """Sum over processes. Since each process uses the sum, the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return _sum_over_ranks(grad)
