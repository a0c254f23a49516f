"""A first layer that a large perturbation of black and white pixels does not get through.

At eps 0.43 a black pixel stays at or below 0.43 and a white one at or above 0.57. A gate answers 0 up to one level, 1
from the next on, and rises in between (for dark pixels from -1, a black one, to 0): of a black or a white pixel,
whatever an attack makes of it, its answer is the same. An attack has the gray pixels at the strokes' edges left. There
are gates below mid-gray and gates above it: at eps 0.4, a pixel from 0.9 on can't close the lower ones, a pixel up to
0.1 can't open the upper ones. Between the outer levels one of the two always has a gradient, for an attack to follow
and for training to see.

Elsewhere the gradient is exactly zero here. In the paper's network with the same weights it is rounding noise of 1e-8,
which attacks that go by the gradient's sign follow as a random search. That is the network that others attack, so
validation, test and evaluation attack it too: :meth:`GatedMNISTCNN.plain`.

Pooling passes on the largest of four, so that gates for bright pixels tell whether any of the four is white; whether
any is black, which is what the gap between two strokes consists of, takes gates for dark pixels.

This is a fixed soft form of binarising the input, which is known to serve on MNIST (Schott et al. 2019) and owes
nothing to training; it presumes images that are mostly black and white. Hard thresholds hide gradients from attacks.
These keep theirs where the attack has a say, and attacks that need none have to confirm it.

A gate is the difference of two filters behind ReLU, and so lies across two layers of the paper's network: the first
holds the filters, and the second has to give each pair opposite weights. Neither is left to training. As each gate
follows one pixel, the largest of four gates is the gate of the largest of four pixels; so it is computed here.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (0.43, 0.5, 0.57)
PLACES = 8  # for bright and for dark pixels, each at the four around the kernel's centre
GATES = PLACES * (len(LEVELS) - 1)


class Gates(nn.Conv2d):
    """A first convolution, its pooling by two and its ReLU: 16 gates, which are not trained.

    Weights and biases are those with which a plain convolution, pooling, and ReLU give each gate as two channels. Of
    a pair, the even filter bends at the gate's lower level, the odd one at its upper one. Each gate looks at one pixel,
    one of the four around the kernel's centre, so that pooling by two sees every pair of neighbours.
    Filters beyond the 32nd answer nothing. Weights of any other layer are refused.

    Args:
        out_channels: Of the plain convolution, 32 or more.
        kernel_size: Of the plain convolution, 3 or more.

    Raises:
        ValueError: If the convolution can't hold the gates.
    """

    def __init__(self, out_channels: int, kernel_size: int) -> None:
        if out_channels < 2 * GATES or kernel_size < 3:
            raise ValueError(
                f"gates need 32 filters or more of 3x3 up, got {out_channels} of {kernel_size}x{kernel_size}"
            )
        super().__init__(1, out_channels, kernel_size)
        assert self.bias is not None
        centre = kernel_size // 2
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
            for number in range(2 * GATES):
                gate, end = divmod(number, 2)
                level, place = divmod(gate, PLACES)
                slope = 1 / (LEVELS[level + 1] - LEVELS[level])
                sign = 1 if place < PLACES // 2 else -1  # bright or dark
                self.weight[number, 0, centre + place // 2 % 2, centre + place % 2] = sign * slope
                self.bias[number] = -sign * slope * LEVELS[level + end]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled output of the gates.

        Args:
            images: ``(N, 1, H, W)``, float, in [0, 1]; N at least 1, H - K + 1 and W - K + 1 even.

        Returns:
            ``(N, 16, (H - K + 1) // 2, (W - K + 1) // 2)``: gates for bright pixels from 0 to 1, for dark ones from -1
            (a black pixel among the four) to 0.
        """
        centre, reach = self.kernel_size[0] // 2, 2 - self.kernel_size[0]
        rows, columns = images.shape[2] + reach, images.shape[3] + reach
        seen = images[:, :, centre : centre + rows, centre : centre + columns]
        pooled = torch.cat([_of_each_square(seen, torch.maximum), _of_each_square(seen, torch.minimum)], 1)
        gates = []
        for low, high in pairwise(LEVELS):
            bright, dark = ((pooled - low) / (high - low)).clamp(0, 1).chunk(2, 1)
            gates += [bright, dark - 1]
        return torch.cat(gates, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_msgs = rest[-1]
        for name, own in self.named_parameters():
            key = f"{prefix}{name}"
            given = state_dict.get(key)
            if given is None:
                continue
            if not torch.equal(given.to(own), own.to(given.dtype).to(own)):
                error_msgs.append(_NOT_GATES.format(key))
                return
            state_dict[key] = own.detach()  # exact, where half precision has rounded them
        super()._load_from_state_dict(state_dict, prefix, *rest)


class GateConv2d(nn.Conv2d):
    """The convolution that follows gates.

    Its weights are those of a plain convolution that sees each gate as two channels: a pair begins opposite and stays
    so under optimizers that treat all weights alike (SGD, Adam), as its gradients are opposite. Weights that are not
    would be answered for wrongly, and are refused.

    Args:
        in_channels: Of the plain convolution, 32 or more; those beyond the 32nd are left out.
        out_channels: Number of channels.
        kernel_size: Side of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        with torch.no_grad():
            self.weight[:, 1 : 2 * GATES : 2] = -self.weight[:, 0 : 2 * GATES : 2]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_gates = (weight[:, 0 : 2 * GATES : 2] - weight[:, 1 : 2 * GATES : 2]) / 2
        return F.conv2d(input, of_gates, bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_msgs, weight = rest[-1], state_dict.get(f"{prefix}weight")
        if weight is not None and not torch.equal(weight[:, 0 : 2 * GATES : 2], -weight[:, 1 : 2 * GATES : 2]):
            error_msgs.append(_NOT_GATES.format(f"{prefix}weight"))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _of_each_square(pixels: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The brightest or darkest pixel of each 2x2 square, ``(N, 1, H + 1, W + 1)`` to ``(N, 4, H / 2, W / 2)``.

    The channels are the squares' places: at even rows and columns, one to the right, one down, both.
    """
    down = extreme(pixels[:, :, :-1], pixels[:, :, 1:])
    return F.pixel_unshuffle(extreme(down[..., :-1], down[..., 1:]), 2)


_NOT_GATES = "{} is not that of a network with gates: load it into rampart.networks.MNISTCNN"
