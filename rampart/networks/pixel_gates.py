"""Fixed gates of single pixels as a first layer of any network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class PixelGates(nn.Module):
    """Replace each channel of an image by gates: 0 up to a low level, 1 from a high level on, and linear in between.

    A soft form of binarising the image, which is not trained. Perturbing a black or white pixel by up to the low level
    and up to 1 minus the high level does not change a gate, so the layer presumes images that are mostly black and
    white; see :mod:`rampart.networks.gates`. Interval bounds of a gate are exact, as it never decreases.

    Args:
        levels: Pairs of a low and a high level, one pair per gate, pixel scale, such as ``[[0.43, 0.57]]``.

    Raises:
        ValueError: If there is no pair, or levels are not 0 <= low < high <= 1.
    """

    low: Tensor
    high: Tensor

    def __init__(self, levels: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        if not levels or not all(0 <= low < high <= 1 for low, high in levels):
            raise ValueError(f"levels must be pairs of numbers 0 <= low < high <= 1, at least one, got {list(levels)}")
        self.init_args = {"levels": tuple((low, high) for low, high in levels)}
        low, high = torch.tensor(levels).unbind(1)
        self.register_buffer("low", low)  # (number of gates,)
        self.register_buffer("high", high)

    def forward(self, images: Tensor) -> Tensor:
        """Return gates ``(N, C L, H, W)`` in [0, 1] for images ``(N, C, H, W)`` in [0, 1] and L pairs of levels.

        The first C channels are the gates of the first pair of levels.
        """
        channels = images.shape[1]
        low, high = (level.repeat_interleave(channels).view(-1, 1, 1) for level in (self.low, self.high))
        return ((images.repeat(1, self.low.shape[0], 1, 1) - low) / (high - low)).clamp(0, 1)

    def extra_repr(self) -> str:
        """Return the levels, for ``repr``."""
        return f"levels={self.init_args['levels']}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        error_msgs = rest[-1]
        for name, own in self.named_buffers():
            given = state_dict.get(f"{prefix}{name}")
            if given is None:
                continue
            if given.shape != own.shape or not torch.equal(given.to(own), own.to(given.dtype).to(own)):
                numbers = [round(number, 4) for number in given.flatten().tolist()]
                error_msgs.append(
                    f"{prefix}{name} is {numbers} in the file, and the network's levels are "
                    f"{self.init_args['levels']}: build it with the file's levels"
                )
                return
            state_dict[f"{prefix}{name}"] = own  # exact, also if the file holds them rounded to half precision
        super()._load_from_state_dict(state_dict, prefix, *rest)
