"""BatchNorm in train mode on a box, by the statistics of a batch that passes along with it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.kernels.batch_norm import measure_batch, normalise_by


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


def normalise_by_batch(
    clean: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], synced: bool
) -> tuple[Tensor, tuple[Any, ...]]:
    """Apply BatchNorm in train mode to a batch, and return the arguments that apply the same function to any tensor.

    The statistics keep their gradients, so that training a bound also accounts for what the weights do to them (Shi et
    al. 2021: the bounds are normalised by the statistics of the clean batch).

    Args:
        clean: ``(N, C, ...)``, the batch.
        args: Positional arguments of ``torch.nn.functional.batch_norm``.
        kwargs: Its keyword arguments.
        synced: Use the statistics of the batches of all processes.

    Returns:
        The normalised batch, and the arguments of :func:`normalise_by` after the first. Running statistics are updated
        once, from the batch.

    Raises:
        TypeError: If the arguments are not those of BatchNorm.
    """
    given = BatchNormArguments(*args, **kwargs)
    if synced:
        mean, variance = measure_batch(clean, given.running_mean, given.running_var, given.momentum)
        arguments = mean, variance, given.weight, given.bias, given.eps
        return normalise_by(clean, *arguments), arguments
    normalised = F.batch_norm(clean, *given[1:])
    over = [dimension for dimension in range(clean.ndim) if dimension != 1]
    variance, mean = torch.var_mean(clean, over, correction=0)
    return normalised, (mean, variance, given.weight, given.bias, given.eps)
