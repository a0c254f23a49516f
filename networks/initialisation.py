"""Random initial weights other than torch's own."""

from typing import Literal, TypeAlias

import torch
from torch import nn

Initialisation: TypeAlias = Literal["default", "xavier", "he", "thresholds"]


def initialise(network: nn.Module, scheme: Initialisation) -> None:
    """Draw the weights of all convolutions and linear layers anew, and set their biases to zero.

    Args:
        network: Changed in place.
        scheme: ``"xavier"`` is the normal distribution of Glorot and Bengio 2010 (eq. 12's variance), ``"he"`` that of
            He et al. 2015 (eq. 10) for ReLU; ``"default"`` leaves the network as torch built it, biases included;
            ``"thresholds"`` too, but for the first convolution, see :func:`initialise_as_thresholds`.

    Raises:
        ValueError: If there is no such scheme.
    """
    if scheme not in ("default", "xavier", "he", "thresholds"):
        raise ValueError(f"init must be one of default, xavier, he, thresholds, got {scheme!r}")
    if scheme == "default":
        return
    if scheme == "thresholds":
        initialise_as_thresholds(next(module for module in network.modules() if isinstance(module, nn.Conv2d)))
        return
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if scheme == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_as_thresholds(convolution: nn.Conv2d, low: float = 0.43, high: float = 0.57) -> None:
    """Let every filter pass on by how much one pixel is above, or below, ``low`` or ``high``.

    The difference of two such filters is a gate, shut on one side of the two levels and open on the other: behind it, a
    black pixel that became at most ``low`` and a white one that became at least ``high`` are as they were. Adversarial
    training at eps 0.43 arrives at filters that answer bright pixels by itself, with these very levels, and never at
    such that answer dark ones. Pooling passes on the largest of four: with bright filters alone, whether any of them
    is white, and never whether any is black, which is what a gap between two strokes consists of.

    The pixels looked at are the four around the kernel's centre, so that pooling by two sees every pair of
    neighbours; gains are random.

    Args:
        convolution: From one channel, with bias, 3x3 or larger; changed in place.
        low: Where the gates begin to open, in [0, 1].
        high: Where they are open.

    Raises:
        ValueError: If the convolution is not as stated.
    """
    if convolution.in_channels != 1 or convolution.bias is None or min(convolution.kernel_size) < 3:
        raise ValueError(f"thresholds need a convolution from one channel, with bias, 3x3 or larger, got {convolution}")
    row, column = (size // 2 for size in convolution.kernel_size)
    with torch.no_grad():
        convolution.weight.zero_()
        for number, (weight, bias) in enumerate(zip(convolution.weight, convolution.bias, strict=True)):
            gain, sign = 0.5 + torch.rand(()), 1 - 2 * (number // 8 % 2)  # bright or dark
            weight[0, row + number % 2, column + number // 2 % 2] = gain * sign
            bias.copy_(-gain * sign * (low, high)[number // 4 % 2])
