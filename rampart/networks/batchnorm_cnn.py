"""Networks of certified training: convolutions and one hidden linear layer, each with BatchNorm and ReLU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels import can_skip_calls, conv_bn
from rampart.networks.initialisation import Initialisation, initialise
from rampart.networks.normalize import Normalize
from rampart.networks.pixel_gates import PixelGates


@dataclass(frozen=True)
class Convolution:
    """Shape of a convolution.

    Attributes:
        widening: Number of output channels, as a multiple of the network's width.
        kernel_size: Side of the kernel in pixels.
        stride: Stride in pixels.
        padding: Zeros on each side.
    """

    widening: int
    kernel_size: int
    stride: int
    padding: int


class BatchNormCNN(nn.Module):
    """Base of the networks for certified training: convolutions, a hidden linear layer, and a linear layer of logits.

    BatchNorm and ReLU follow all layers but the last. Bounds of such networks stay narrow enough to be trained through.
    In eval mode, BatchNorm is folded into the convolutions where that is faster: the function and its gradients are the
    same up to rounding.

    Attributes:
        convolutions: Shapes of the convolutions.
        image_shape: ``(C, H, W)`` of the input images.
    """

    convolutions: ClassVar[tuple[Convolution, ...]]

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        width: int,
        hidden: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        levels: tuple[tuple[float, float], ...] | None,
        init: Initialisation,
    ) -> None:
        sizes = {"num_classes": num_classes, "image_shape": min(image_shape), "width": width, "hidden": hidden}
        for name, value in sizes.items():
            least = 2 if name == "num_classes" else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__()
        channels, *sides = image_shape
        self.image_shape = (channels, *sides)
        self.init_args: dict[str, Any] = {
            "num_classes": num_classes,
            "image_shape": self.image_shape,
            "width": width,
            "hidden": hidden,
            "mean": mean if mean is None else tuple(mean),
            "std": std if std is None else tuple(std),
            "levels": levels if levels is None else tuple((low, high) for low, high in levels),
            "init": init,
        }
        self.first_layer = _make_first_layer(channels, mean, std, levels)
        channels *= len(levels or [()])
        for number, shape in enumerate(self.convolutions, 1):
            inputs, channels = channels, width * shape.widening
            conv = nn.Conv2d(inputs, channels, shape.kernel_size, shape.stride, shape.padding, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
            sides = [(side + 2 * shape.padding - shape.kernel_size) // shape.stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"image_shape {list(image_shape)} is too small for {type(self).__name__}")
        self.fc1 = nn.Linear(channels * sides[0] * sides[1], hidden, bias=False)
        self.bn_fc1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        initialise(self, init)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, C, H, W)``, float, in [0, 1].

        Raises:
            RuntimeError: If the images have another shape.
        """
        if can_skip_calls(images) and tuple(images.shape[1:]) != self.image_shape:
            raise RuntimeError(
                f"{type(self).__name__} is for images of shape {list(self.image_shape)}, and these have "
                f"{list(images.shape[1:])}: convert the images, or give the network their image_shape"
            )
        x: Tensor = self.first_layer(images)
        for number in range(1, len(self.convolutions) + 1):
            conv, bn = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(bn, _BatchNorm)
            x = F.relu(conv_bn(conv, bn, x))
        x = F.relu(self.bn_fc1(self.fc1(x.flatten(1))))  # (N, hidden)
        logits: Tensor = self.fc2(x)
        return logits


class CNN7(BatchNormCNN):
    """Five convolutions and two linear layers, the network that certified training is compared on (Shi et al. 2021).

    It has 13.3 million parameters for images of 28x28 pixels, and 17.2 million for 32x32.

    Args:
        num_classes: Number of logits.
        image_shape: ``(C, H, W)`` of the input images, such as ``[3, 32, 32]`` for CIFAR-10.
        width: Channels of the first two convolutions; the other three have twice as many.
        hidden: Outputs of the hidden linear layer.
        mean: One number per channel, pixel scale, to normalise images by; no normalisation if None.
        std: One number per channel, pixel scale, above 0.
        levels: Pairs of a low and a high level, for a fixed first layer of :class:`rampart.networks.PixelGates`; none
            if None. The layer presumes images that are mostly black and white.
        init: Random initial weights; see :func:`rampart.networks.initialisation.initialise`.

    Raises:
        ValueError: If there are fewer than two classes, a size is below 1, or mean, std and levels do not fit.
    """

    convolutions = (
        Convolution(1, 3, 1, 1),
        Convolution(1, 3, 1, 1),
        Convolution(2, 3, 2, 1),
        Convolution(2, 3, 1, 1),
        Convolution(2, 3, 1, 1),
    )

    def __init__(
        self,
        num_classes: int = 10,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 64,
        hidden: int = 512,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        levels: tuple[tuple[float, float], ...] | None = None,
        init: Initialisation = "ibp",
    ) -> None:
        super().__init__(num_classes, image_shape, width, hidden, mean, std, levels, init)


class CNN5(BatchNormCNN):
    """Three convolutions and two linear layers, a network for certified training that a CPU trains.

    It has 0.9 million parameters for images of 28x28 pixels.

    Args:
        num_classes: Number of logits.
        image_shape: ``(C, H, W)`` of the input images, such as ``[3, 32, 32]`` for CIFAR-10.
        width: Channels of the first convolution; the other two have twice as many.
        hidden: Outputs of the hidden linear layer.
        mean: One number per channel, pixel scale, to normalise images by; no normalisation if None.
        std: One number per channel, pixel scale, above 0.
        levels: Pairs of a low and a high level, for a fixed first layer of :class:`rampart.networks.PixelGates`; none
            if None. The layer presumes images that are mostly black and white.
        init: Random initial weights; see :func:`rampart.networks.initialisation.initialise`.

    Raises:
        ValueError: If there are fewer than two classes, a size is below 1, or mean, std and levels do not fit.
    """

    convolutions = (Convolution(1, 5, 2, 2), Convolution(2, 3, 1, 1), Convolution(2, 4, 2, 1))

    def __init__(
        self,
        num_classes: int = 10,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        width: int = 32,
        hidden: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        levels: tuple[tuple[float, float], ...] | None = None,
        init: Initialisation = "ibp",
    ) -> None:
        super().__init__(num_classes, image_shape, width, hidden, mean, std, levels, init)


def _make_first_layer(
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    levels: tuple[tuple[float, float], ...] | None,
) -> nn.Module:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got {mean} and {std}")
    if mean is None or std is None:
        return nn.Identity() if levels is None else PixelGates(levels)
    if levels is not None:
        raise ValueError("levels are of images in [0, 1], without normalisation: leave out mean and std")
    if len(mean) != channels:
        raise ValueError(f"mean must have one number for each of the {channels} channels, got {len(mean)}")
    return Normalize(mean, std)
