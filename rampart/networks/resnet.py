"""ResNets for 32x32 images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels import can_skip_calls, conv_bn
from rampart.networks.normalize import Normalize

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

CHANNELS_LAST_FROM = 32  # Smallest batch for channels_last: below, converting the weights costs more than it saves.


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with the stem for small images: a 3x3 convolution of stride 1, no max-pooling.

    Larger batches are computed in channels_last. In eval mode, BatchNorm is folded into the convolutions where that is
    faster: the function and its gradients are the same up to rounding, without separate passes over the activations.

    Args:
        num_classes: Number of logits.
        mean: One number per channel, pixel scale; CIFAR-10's by default.
        std: One number per channel, pixel scale, above 0; CIFAR-10's by default.
        width: Channels of the first stage; later stages have 2, 4 and 8 times as many.

    Raises:
        ValueError: If there are fewer than two classes or no channel.

    Attributes:
        image_shape: ``(C, H, W)`` of the input images.
    """

    def __init__(
        self,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        width: int = 64,
    ) -> None:
        for name, value, least in (("num_classes", num_classes, 2), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__()
        self.init_args = {"num_classes": num_classes, "mean": tuple(mean), "std": tuple(std), "width": width}
        self.image_shape = (len(mean), 32, 32)
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, 3, 32, 32)``, float, in [0, 1]."""
        x = self.normalize(images)
        if can_skip_calls(images) and len(images) >= CHANNELS_LAST_FROM:
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(conv_bn(self.conv1, self.bn1, x))  # (N, width, 32, 32)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.linear(x.mean((2, 3)))  # (N, 8 width, 4, 4) -> (N, 8 width)
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut connection (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, outputs, H / stride, W / stride)``."""
        out = conv_bn(self.conv2, self.bn2, F.relu(conv_bn(self.conv1, self.bn1, x)))
        if len(self.shortcut):
            conv, bn = self.shortcut
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(bn, _BatchNorm)
            x = conv_bn(conv, bn, x)
        return F.relu(out + x)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, stride=1))
