"""BatchNorm by given statistics, and by those of a batch that several processes share."""

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from rampart.kernels.ranks import gather_over_ranks


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


def sync_batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Apply BatchNorm in train mode, by the statistics of the batches of all processes, on any device.

    Arguments are those of ``torch.nn.functional.batch_norm``. All processes must call it in the same order.

    Args:
        input: ``(N, C, ...)``, float; N may differ between processes.
        running_mean: ``(C,)``, moved towards the batch's; nothing is if None.
        running_var: ``(C,)``, moved towards the batch's, divided by one less than the number of values.
        weight: ``(C,)``; 1 if None.
        bias: ``(C,)``; 0 if None.
        training: True; for other uses there is torch's function.
        momentum: Share of the batch's statistics in the running ones.
        eps: Added to the variance.

    Returns:
        The normalised batch, in the shape and dtype of ``input``. Its gradients account for all processes' statistics.
    """
    if has_torch_function_unary(input):
        arguments = running_mean, running_var, weight, bias, training, momentum, eps
        return handle_torch_function(sync_batch_norm, (input,), input, *arguments)
    exact = input.dtype == torch.promote_types(input.dtype, torch.float32)
    if exact and all(given is None or given.dtype == input.dtype for given in (weight, bias)):
        output: Tensor = _SyncedBatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
        return output
    mean, variance = measure_batch(input, running_mean, running_var, momentum)
    return normalise_by(input, mean, variance, weight, bias, eps).to(input.dtype)


class _SyncedBatchNorm(torch.autograd.Function):
    """BatchNorm by the statistics of all processes, by torch's kernels; on CPUs they take half of the time."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, variance = measure_batch(input, running_mean, running_var, momentum)
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.eps = eps
        return F.batch_norm(input, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # With constant statistics: the sums over the batch of the gradient, times the normalised input and alone.
        grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(), input, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([grad_weight, grad_bias, mean.new_full((1,), input.numel() / max(len(mean), 1))])
        torch.distributed.all_reduce(sums)
        slopes, shifts, count = torch.split(sums, [len(mean), len(mean), 1])
        deviation = (variance + ctx.eps).rsqrt()
        factor = scale * deviation / count
        slope = factor * slopes * deviation
        shape = (1, -1, *[1] * (input.ndim - 2))
        shift = (factor * shifts - slope * mean).view(shape)
        grad_input = grad_input.sub_(shift).addcmul_(input, slope.view(shape), value=-1)
        needed = zip(ctx.needs_input_grad, (grad_input, grad_weight, grad_bias), strict=False)
        return *(each if need else None for need, each in needed), None, None, None, None


def measure_batch(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Measure the batches of all processes, and update the running statistics. Arguments: see :func:`sync_batch_norm`.

    Returns:
        Mean and variance of each channel, ``(C,)``, with their graph.
    """
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    if torch.is_grad_enabled():
        over = [dimension for dimension in range(input.ndim) if dimension != 1]
        variance, mean = torch.var_mean(values, over, correction=0)
    else:  # in a third of the time
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
    own = torch.cat([mean, variance, mean.new_full((1,), values.numel() / max(len(mean), 1))])
    means, variances, counts = torch.split(gather_over_ranks(own), [len(mean), len(mean), 1], 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        if running_var is not None:
            running_var.mul_(1 - momentum).add_(variance * (count / (count - 1)), alpha=momentum)
    return mean, variance
