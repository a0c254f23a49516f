"""Regularisers of training with interval bounds, and the L1 penalty on weights."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.bounds import Bounds, Operation, list_operations, list_relu_inputs
from rampart.kernels import mean_over_ranks

CLEAN_PHASE_EPS = 1e-6
"""Radius of the regularised bounds while eps is 0, as in the code of Shi et al. 2021."""

Average = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""A function of scalars of this process that returns their means over all processes."""

LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}


def regularise_bounds(logits: Operation, tau: float = 0.5, processes: int = 1) -> Tensor:
    """Return the warmup regularisers of Shi et al. 2021: of the bounds' tightness, and of the ReLUs' balance.

    The tightness term is above 0 if the mean radius of a ReLU's input exceeds ``1 / tau`` times that of the first
    layer's input. The balance term is above 0 if the means or the variances of active and inactive neurons differ by
    more than that factor. A neuron counts as active or inactive where the bounds prove it. Balances that are undefined,
    as no neuron is either, are 0.

    Args:
        logits: The last operation of a traced interval.
        tau: Share below which a ratio is penalised, above 0.
        processes: Number of processes that share the batch. With several, all must call this: means are over all of
            their images.

    Returns:
        A scalar, the mean over ReLUs of the sum of both; 0 for a network without ReLU. Means are over the batch and all
        neurons. The first layer is the first convolution or linear layer.
    """
    inputs = list_relu_inputs(logits)
    if not inputs:
        return logits.bounds.lower.new_zeros(())
    average = mean_over_ranks if processes > 1 else tuple
    (first_radius,) = average([_get_first_input(logits).radius.mean()])
    terms = [
        _penalise_width(bounds, first_radius, tau, average) + _penalise_imbalance(bounds, tau, average)
        for bounds in inputs
    ]
    return torch.stack(terms).mean()


def penalise_weights(network: nn.Module) -> Tensor:
    """Return the sum of the absolute trainable weights of convolutions and linear layers, a scalar."""
    return torch.stack([w.abs().sum() for w in network.parameters() if w.requires_grad and w.ndim > 1]).sum()


def _get_first_input(logits: Operation) -> Bounds:
    operations = list_operations(logits)
    first = next((operation.inputs[0] for operation in operations if operation.function in LAYERS), operations[0])
    return first.bounds


def _penalise_width(bounds: Bounds, first_radius: Tensor, tau: float, average: Average) -> Tensor:
    (radius,) = average([bounds.radius.mean()])
    return F.relu(tau - first_radius / radius.clamp(min=1e-12)) / tau


def _penalise_imbalance(bounds: Bounds, tau: float, average: Average) -> Tensor:
    middle, active, inactive = bounds.middle, bounds.lower > 0, bounds.upper < 0
    (mean,) = average([middle.mean()])
    deviation = (middle - mean).square()
    # The ratio of two sums over all processes is that of their means.
    positive, negative, spread, other_spread = average(
        [
            (middle * active).mean(),
            -(middle * inactive).mean(),
            (deviation * active).sum(),
            (deviation * inactive).sum(),
        ]
    )
    pairs = (positive, negative), (spread, other_spread)
    smaller = torch.stack([torch.minimum(*pair) for pair in pairs])
    larger = torch.stack([torch.maximum(*pair) for pair in pairs])
    # Divide by the clamped value, so that a gradient of zero stays zero. Torch's `where` does not wait for the device.
    ratios = smaller / larger.clamp(min=torch.finfo(larger.dtype).tiny)
    term = F.relu(tau - ratios).sum() / tau
    return torch.where((larger > 0).all() & term.isfinite(), term, 0.0)
