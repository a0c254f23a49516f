"""A convolution and its BatchNorm in eval mode, as one convolution."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels.derived import current_derived, derive_weights
from rampart.kernels.fast_path import can_skip_calls


def conv_bn(conv: nn.Conv2d, bn: _BatchNorm, x: Tensor) -> Tensor:
    """Return ``bn(conv(x))``, computed as one convolution where that is allowed and faster.

    In an attack the weights are folded once, in the memory format of the images and in autocast's dtype.

    Args:
        conv: Convolution without bias.
        bn: BatchNorm that follows it.
        x: ``(N, C, H, W)``.
    """
    if not _should_fold(conv, bn, x):
        normalized: Tensor = bn(conv(x))
        return normalized
    assert bn.running_mean is not None
    assert bn.running_var is not None
    sources = conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var
    # On a CPU, oneDNN chooses the weights' layout itself.
    channels_last = x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    weight, bias = derive_weights(conv, sources, partial(_fold, bn.eps), channels_last)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def _fold(
    eps: float, weight: Tensor, bn_weight: Tensor, bn_bias: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of the convolution that computes both layers."""
    scale = bn_weight * (var + eps).rsqrt()
    return weight * scale[:, None, None, None], bn_bias - mean * scale


def _should_fold(conv: nn.Conv2d, bn: _BatchNorm, x: Tensor) -> bool:
    """Return True if BatchNorm is a fixed scale and shift, and scaling the weight is less work than a separate pass."""
    if not can_skip_calls(x, conv, bn) or bn.training or not bn.affine or bn.running_mean is None:
        return False
    if x.device.type != "cpu" and current_derived() is not None:
        return True
    outputs = x.shape[0] * x.shape[2] * x.shape[3] * conv.out_channels // (conv.stride[0] * conv.stride[1])
    return 2 * outputs >= conv.weight.numel()
