"""A fixed first layer that is invariant to large perturbations of black and white pixels.

A gate is a function of one pixel: 0 up to one level, 1 from the next level on, and linear in between. (Gates for dark
pixels have the same slope but go from -1 at black to 0.) The levels are 0.43, 0.5 and 0.57. At eps 0.43, a black pixel
stays at or below 0.43 and a white one at or above 0.57, so no attack changes the output of a gate whose pixel is black
or white. An attack can only change gray pixels, which lie at the edges of strokes.

There are gates below mid-gray and gates above it. At eps 0.4, a pixel from 0.9 on can't be lowered far enough to close
the lower ones, and a pixel up to 0.1 can't be raised far enough to open the upper ones. Between the outer levels, one
of the two kinds has a nonzero gradient, which attacks and training can use. Outside of them the gradient is exactly
zero.

In the paper's network with the same weights, that zero is rounding noise of about 1e-8 instead, which attacks by the
gradient's sign follow as a random search. Users of the weights load and attack the paper's network, so validation,
test and evaluation attack it too: see :meth:`rampart.networks.GatedMNISTCNN.plain`.

Pooling keeps the largest of four outputs. Gates for bright pixels therefore show whether any of the four pixels is
white. Gates for dark pixels are needed to show whether any of them is black, as in the gap between two strokes.

The layer is a soft form of binarising the input, is not trained, and presumes images that are mostly black and white.
Binarisation is known to help on MNIST (Schott et al. 2019). Hard thresholds hide gradients from attacks; these gates
keep their gradients where an attack can change them. Attacks that use no gradients have to confirm the robustness.

A gate is the difference of two filters behind ReLU, so it spans two layers of the paper's network: the first layer
holds the filters, and the second must give each pair opposite weights. Neither is learned in training. As a gate rises
with its pixel, the largest of four gates is the gate of the largest of four pixels, and is computed that way.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.kernels import derive_weights

LEVELS = (0.43, 0.5, 0.57)
PLACES = 8  # bright and dark pixels, each at the four places around the kernel's centre
GATES = PLACES * (len(LEVELS) - 1)


class Gates(nn.Conv2d):
    """A first convolution with its 2x2 max-pooling and ReLU: 16 gates, which are not trained.

    With this layer's weights and biases, a plain convolution, pooling and ReLU compute each gate as a pair of channels:
    the even filter bends at the gate's lower level, the odd one at its upper level. Each gate looks at one pixel, one
    of the four around the kernel's centre, so that pooling sees every pair of neighbours. Filters from the 33rd on
    are zero. Loading other weights is an error.

    Args:
        out_channels: Number of filters of the plain convolution, at least 32.
        kernel_size: Side of its kernel in pixels, at least 3.

    Raises:
        ValueError: If the convolution can't hold the gates.
    """

    def __init__(self, out_channels: int, kernel_size: int) -> None:
        if out_channels < 2 * GATES or kernel_size < 3:
            raise ValueError(
                f"gates need at least 32 filters of at least 3x3, got {out_channels} of {kernel_size}x{kernel_size}"
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
        """Return the pooled outputs of the gates.

        Args:
            images: ``(N, 1, H, W)``, float, in [0, 1]; N at least 1; H - K + 1 and W - K + 1 even, K the kernel's side.

        Returns:
            ``(N, 16, (H - K + 1) // 2, (W - K + 1) // 2)``: gates for bright pixels from 0 to 1, gates for dark ones
            from -1 (one of the four pixels is black) to 0.
        """
        centre, reach = self.kernel_size[0] // 2, 2 - self.kernel_size[0]
        rows, columns = images.shape[2] + reach, images.shape[3] + reach
        pixels = images[:, :, centre : centre + rows, centre : centre + columns]
        pooled = torch.cat([_reduce_squares(pixels, torch.maximum), _reduce_squares(pixels, torch.minimum)], 1)
        gates = []
        for low, high in pairwise(LEVELS):
            bright, dark = ((pooled - low) / (high - low)).clamp(0, 1).chunk(2, 1)
            gates += [bright, dark - 1]
        return torch.cat(gates, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_msgs = rest[-1]
        for name, gates in self.named_parameters():
            key = f"{prefix}{name}"
            given = state_dict.get(key)
            if given is None:
                continue
            if not torch.equal(given.to(gates), gates.to(given.dtype).to(gates)):
                error_msgs.append(_NOT_GATES.format(key))
                return
            state_dict[key] = gates.detach()  # exact, also if the file holds them rounded to half precision
        super()._load_from_state_dict(state_dict, prefix, *rest)


class GateConv2d(nn.Conv2d):
    """The convolution after the gates.

    Its weights are those of a plain convolution that gets each gate as a pair of channels. The two weights of a pair
    are initialised as opposites. Their gradients are opposite too, so they stay opposites under optimizers that treat
    all weights alike (SGD, Adam). Loading weights whose pairs are not opposite is an error, since this layer would
    compute another function with them than a plain convolution.

    Args:
        in_channels: Number of input channels of the plain convolution, at least 32; those from the 33rd on are unused.
        out_channels: Number of output channels.
        kernel_size: Side of the kernel in pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        with torch.no_grad():
            self.weight[:, 1 : 2 * GATES : 2] = -self.weight[:, 0 : 2 * GATES : 2]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (gate_weight,) = derive_weights(self, [weight], _subtract_pairs)
        return F.conv2d(input, gate_weight, bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_msgs, weight = rest[-1], state_dict.get(f"{prefix}weight")
        if weight is not None and not torch.equal(weight[:, 0 : 2 * GATES : 2], -weight[:, 1 : 2 * GATES : 2]):
            error_msgs.append(_NOT_GATES.format(f"{prefix}weight"))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _subtract_pairs(weight: Tensor) -> tuple[Tensor]:
    """Return the weights of the gates, ``(C, 16, K, K)``: half the difference of each pair of channels."""
    return ((weight[:, 0 : 2 * GATES : 2] - weight[:, 1 : 2 * GATES : 2]) / 2,)


def _reduce_squares(pixels: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the brightest or darkest pixel of each 2x2 square, ``(N, 1, H + 1, W + 1)`` to ``(N, 4, H / 2, W / 2)``.

    The four channels are the squares that start at even rows and columns, one to the right, one down, and both.
    """
    down = extreme(pixels[:, :, :-1], pixels[:, :, 1:])
    return F.pixel_unshuffle(extreme(down[..., :-1], down[..., 1:]), 2)


_NOT_GATES = "{} is not that of a network with gates: load these weights into rampart.networks.MNISTCNN"
