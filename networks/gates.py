"""A first layer that a large perturbation of black and white pixels does not get through.

At eps 0.43 a black pixel stays at or below 0.43 and a white one at or above 0.57. A gate answers 0 up to the one level,
1 from the other on, and rises in between: of a black or a white pixel, whatever an attack makes of it, its answer is
the same. An attack has the gray pixels at the strokes' edges left, where the gate has a gradient for it to follow, and
for training to see.

Adversarial training arrives at such levels by itself, and spends its first epochs on the way. It does not arrive at all
that is there to be had. Pooling passes on the largest of four, so that gates for bright pixels tell whether any of the
four is white; whether any is black, which is what the gap between two strokes consists of, takes gates for dark pixels.
Left to training, those die; and bright ones close in on a single level, where no attack finds their gradient.
"""

import torch
from torch import nn

LOW, HIGH = 0.43, 0.57


def begin_with_gates(first: nn.Conv2d, second: nn.Conv2d) -> None:
    """Make a first convolution gates, for good, and let the second begin with their differences.

    A gate is the difference of two filters behind ReLU, of the slope 1 / (HIGH - LOW), that look at one pixel: one
    begins to answer at LOW, the other at HIGH. There is one for each of the four pixels around the kernel's centre,
    so that pooling by two sees every pair of neighbours, and for bright and for dark: eight gates, sixteen filters.
    What filters are left answer nothing.

    Args:
        first: From one channel, to 16 or more, with bias, 3x3 or larger; it needs no gradient any more.
        second: Behind ReLU and 2x2 pooling; of each pair of filters its weights are made opposite.

    Raises:
        ValueError: If a convolution is not as stated.
    """
    if first.in_channels != 1 or first.out_channels < 16 or first.bias is None or min(first.kernel_size) < 3:
        raise ValueError(
            f"gates need a convolution from 1 channel to 16 or more, with bias, 3x3 or larger, got {first}"
        )
    row, column = (size // 2 for size in first.kernel_size)
    slope = 1 / (HIGH - LOW)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        for gate in range(8):
            dark, down, across = gate // 4, gate // 2 % 2, gate % 2
            sign = -1 if dark else 1
            for number, level in ((2 * gate, LOW), (2 * gate + 1, HIGH)):
                first.weight[number, 0, row + down, column + across] = sign * slope
                first.bias[number] = -sign * slope * level
            second.weight[:, 2 * gate + 1] = -second.weight[:, 2 * gate]
    first.requires_grad_(False)
