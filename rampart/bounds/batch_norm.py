"""BatchNorm in train mode on a box, by the statistics of a batch that passes along with it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class BatchNormArguments(NamedTuple):
    """Arguments of ``torch.nn.functional.batch_norm``, with its names and defaults."""

    input: Any
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def normalise_by(
    input: Any,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Apply BatchNorm with given statistics, ``(C,)``. Unlike torch's function, it passes gradients to them."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    return input * scale.view(shape) + shift.view(shape)


def normalise_by_batch(clean: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...]]:
    """Apply BatchNorm in train mode to a batch, and return the arguments that apply the same function to any tensor.

    The statistics keep their gradients, so that training a bound also accounts for what the weights do to them (Shi et
    al. 2021: the bounds are normalised by the statistics of the clean batch).

    Args:
        clean: ``(N, C, ...)``, the batch.
        args: Positional arguments of ``torch.nn.functional.batch_norm``.
        kwargs: Its keyword arguments.

    Returns:
        The normalised batch, and the arguments of :func:`normalise_by` after the first. Running statistics are updated
        once, from the batch.

    Raises:
        TypeError: If the arguments are not those of BatchNorm.
    """
    given = BatchNormArguments(*args, **kwargs)
    normalised = F.batch_norm(clean, *given[1:])
    over = [dimension for dimension in range(clean.ndim) if dimension != 1]
    variance, mean = torch.var_mean(clean, over, correction=0)
    return normalised, (mean, variance, given.weight, given.bias, given.eps)
