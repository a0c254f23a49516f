"""Differentiable means and gathering over the processes of a distributed training."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


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
    from torch.distributed.nn.functional import all_reduce

    ranks = torch.arange(count_ranks(), device=values.device).view(-1, *[1] * values.ndim)
    rows = torch.where(ranks == torch.distributed.get_rank(), values, 0)
    gathered: Tensor = all_reduce(rows)  # type: ignore[no-untyped-call]
    return gathered


def mean_over_ranks(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the mean of each tensor over all processes, by one message; see :func:`gather_over_ranks`.

    Args:
        values: Tensors of one dtype, of the same shapes in all processes.
    """
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(torch.cat([tensor.flatten() for tensor in values]))  # type: ignore[no-untyped-call]
    parts = torch.split(total / count_ranks(), [tensor.numel() for tensor in values])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, values, strict=True))
