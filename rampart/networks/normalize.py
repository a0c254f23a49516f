"""Normalisation as a network's first layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel.

    As the network's first layer, it keeps eps in pixel units: attacks see images in [0, 1].

    Args:
        mean: One number per channel, pixel scale.
        std: One number per channel, pixel scale, above 0.

    Raises:
        ValueError: If the two differ in length or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must each have one number per channel, got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {list(std)}")
        self.init_args = {"mean": tuple(mean), "std": tuple(std)}
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` normalised images for images in [0, 1]."""
        return (images - self.mean) / self.std
