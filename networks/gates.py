"""A first layer that a large perturbation of black and white pixels does not get through.

At eps 0.43 a black pixel stays at or below 0.43 and a white one at or above 0.57. A gate answers 0 up to the one level,
1 from the other on, and rises in between: of a black or a white pixel, whatever an attack makes of it, its answer is
the same. An attack has the gray pixels at the strokes' edges left, where the gate has a gradient for it to follow, and
for training to see.

Pooling passes on the largest of four, so that gates for bright pixels tell whether any of the four is white; whether
any is black, which is what the gap between two strokes consists of, takes gates for dark pixels.

This is a fixed soft form of binarising the input, which is known to serve on MNIST (Schott et al. 2019) and owes
nothing to training; it presumes images that are mostly black and white. Hard thresholds hide gradients from attacks.
These keep theirs where the attack has a say, and attacks that need none have to confirm it.

A gate is the difference of two filters behind ReLU, and so lies across two layers: the first holds the filters, and the
second has to give each pair opposite weights. Neither is left to training.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW, HIGH = 0.43, 0.57
GATES = 8  # for bright and for dark, each at the four pixels around the kernel's centre


def make_gates(convolution: nn.Conv2d) -> None:
    """Make a first convolution the filters of eight gates, for good.

    Each looks at one pixel with the slope 1 / (HIGH - LOW); the even ones begin to answer at LOW, the odd ones at HIGH.
    The pixels are the four around the kernel's centre, so that pooling by two sees every pair of neighbours. Filters
    beyond the sixteenth answer nothing.

    Args:
        convolution: From one channel, to 16 or more, with bias, 3x3 or larger; it needs no gradient any more.

    Raises:
        ValueError: If the convolution is not as stated.
    """
    filters, bias = convolution.out_channels, convolution.bias
    if convolution.in_channels != 1 or filters < 2 * GATES or bias is None or min(convolution.kernel_size) < 3:
        raise ValueError(f"gates need a convolution from 1 channel to 16 or more, with bias, 3x3 up, got {convolution}")
    row, column = (size // 2 for size in convolution.kernel_size)
    slope = 1 / (HIGH - LOW)
    with torch.no_grad():
        convolution.weight.zero_()
        bias.zero_()
        for number in range(2 * GATES):
            gate, level = number // 2, (LOW, HIGH)[number % 2]
            sign = 1 if gate < GATES // 2 else -1  # bright or dark
            convolution.weight[number, 0, row + gate // 2 % 2, column + gate % 2] = sign * slope
            bias[number] = -sign * slope * level
    convolution.requires_grad_(False)


class GateConv2d(nn.Conv2d):
    """A convolution of gates: of each pair of channels that :func:`make_gates` makes it sees the difference alone.

    Its weights for a pair begin opposite and stay so under optimizers that treat all weights alike (SGD, Adam), as
    their gradients are opposite; so a plain convolution with the same weights gives the same. Channels beyond the
    sixteenth are zero and are left out. Weights that are not opposite would be answered for wrongly, and are refused.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        with torch.no_grad():
            self.weight[:, 1 : 2 * GATES : 2] = -self.weight[:, 0 : 2 * GATES : 2]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and not torch.equal(weight[:, 0 : 2 * GATES : 2], -weight[:, 1 : 2 * GATES : 2]):
            error_msgs.append(
                f"{prefix}weight is not that of a network with gates: build the network with init 'default' for it"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gates = input[:, 0 : 2 * GATES : 2] - input[:, 1 : 2 * GATES : 2]
        of_gates = (weight[:, 0 : 2 * GATES : 2] - weight[:, 1 : 2 * GATES : 2]) / 2
        return F.conv2d(gates, of_gates, bias)
