"""Common part of the networks for 32x32 images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rampart.kernels import can_skip_calls
from rampart.networks.normalize import Normalize

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

CHANNELS_LAST_FROM = 32  # Smallest batch for channels_last: below, converting the weights costs more than it saves.


class CIFARNetwork(nn.Module):
    """Base of the networks for 32x32 images: checks of the arguments, normalisation, and the memory format.

    A subclass defines ``logits``. Larger batches are computed in channels_last. In eval mode, BatchNorm that follows a
    convolution is folded into it where that is faster: the function and its gradients are the same up to rounding,
    without separate passes over the activations.

    Args:
        num_classes: Number of logits.
        mean: One number per channel, pixel scale.
        std: One number per channel, pixel scale, above 0.
        sizes: Further arguments of the subclass, by name; each at least 1.

    Raises:
        ValueError: If there are fewer than two classes, or a size is below 1.

    Attributes:
        image_shape: ``(C, H, W)`` of the input images.
    """

    def __init__(self, num_classes: int, mean: Sequence[float], std: Sequence[float], sizes: Mapping[str, int]) -> None:
        for name, value, least in (("num_classes", num_classes, 2), *((name, size, 1) for name, size in sizes.items())):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__()
        self.init_args: dict[str, Any] = {"num_classes": num_classes, "mean": tuple(mean), "std": tuple(std), **sizes}
        self.image_shape = (len(mean), 32, 32)
        self.normalize = Normalize(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, C, 32, 32)``, float, in [0, 1].

        Raises:
            RuntimeError: If the images have another number of channels; the normalisation would broadcast one to all.
        """
        plain = can_skip_calls(images)
        if plain and images.shape[1] != self.image_shape[0]:
            raise RuntimeError(
                f"{type(self).__name__} has mean and std of {self.image_shape[0]} channels, and the images have "
                f"{images.shape[1]}: convert the images, or give the network mean and std of their channels"
            )
        x = self.normalize(images)
        if plain and len(images) >= CHANNELS_LAST_FROM:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for normalised images ``(N, C, 32, 32)``."""
        raise NotImplementedError
