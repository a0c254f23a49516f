"""ResNets for 32x32 images."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels import conv_bn
from rampart.networks.cifar_network import CIFAR10_MEAN, CIFAR10_STD, CIFARNetwork
from rampart.networks.initialisation import Initialisation, initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut connection (He et al. 2016, figure 2)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _make_shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, width, H / stride, W / stride)``."""
        out = conv_bn(self.conv2, self.bn2, F.relu(conv_bn(self.conv1, self.bn1, x)))
        return F.relu(out + _apply_shortcut(self.shortcut, x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a shortcut connection (He et al. 2016, figure 5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _make_shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, 4 width, H / stride, W / stride)``."""
        out = F.relu(conv_bn(self.conv1, self.bn1, x))
        out = conv_bn(self.conv3, self.bn3, F.relu(conv_bn(self.conv2, self.bn2, out)))
        return F.relu(out + _apply_shortcut(self.shortcut, x))


class ResNet(CIFARNetwork):
    """ResNet (He et al. 2016) with the stem for small images: a 3x3 convolution of stride 1, no max-pooling.

    Names and numbers are those of the robustness library's networks for CIFAR-10. Weights of torchvision's and timm's
    networks load too, if their stem was replaced by this one.

    Larger batches are computed in channels_last. In eval mode, BatchNorm is folded into the convolutions where that is
    faster: the function and its gradients are the same up to rounding, without separate passes over the activations.

    Args:
        num_classes: Number of logits.
        mean: One number per channel, pixel scale; CIFAR-10's by default.
        std: One number per channel, pixel scale, above 0; CIFAR-10's by default.
        width: Channels of the stem; the blocks of the four stages are 1, 2, 4 and 8 times as wide.
        init: Random initial weights; see :func:`rampart.networks.initialisation.initialise`.

    Raises:
        ValueError: If there are fewer than two classes or no channel, or ``init`` is unknown.

    Attributes:
        block: Kind of block.
        depths: Number of blocks per stage.
        other_names: Names of parts in torchvision's and timm's files, and here.
        image_shape: ``(C, H, W)`` of the input images.
    """

    block: ClassVar[type[BasicBlock | Bottleneck]]
    depths: ClassVar[tuple[int, int, int, int]]
    other_names: ClassVar[Mapping[str, str]] = {"downsample": "shortcut", "fc": "linear"}

    def __init__(
        self,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        width: int = 64,
        init: Initialisation = "default",
    ) -> None:
        super().__init__(num_classes, mean, std, {"width": width})
        self.init_args["init"] = init
        self.conv1 = nn.Conv2d(len(mean), width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        expansion, (one, two, three, four) = self.block.expansion, self.depths
        self.layer1 = self._make_stage(width, width, one, stride=1)
        self.layer2 = self._make_stage(expansion * width, 2 * width, two, stride=2)
        self.layer3 = self._make_stage(2 * expansion * width, 4 * width, three, stride=2)
        self.layer4 = self._make_stage(4 * expansion * width, 8 * width, four, stride=2)
        self.linear = nn.Linear(8 * expansion * width, num_classes)
        _, *blocks = (*self.layer1, *self.layer2, *self.layer3, *self.layer4)  # all but the first read a sum
        after_sums = {
            layer for block in blocks for name in ("conv1", "shortcut") for layer in block.get_submodule(name).modules()
        }
        initialise(self, init, after_sums)

    def _make_stage(self, inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
        first, rest = self.block(inputs, width, stride), range(depth - 1)
        return nn.Sequential(first, *(self.block(self.block.expansion * width, width, stride=1) for _ in rest))

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for normalised images ``(N, C, 32, 32)``."""
        x = F.relu(conv_bn(self.conv1, self.bn1, x))  # (N, width, 32, 32)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.linear(x.mean((2, 3)))  # (N, 8 width, 4, 4) -> (N, 8 width), Bottleneck: 32 width
        return logits


class ResNet18(ResNet):
    """ResNet-18 for 32x32 images, 11.2 million parameters."""

    block, depths = BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet-34 for 32x32 images, 21.3 million parameters."""

    block, depths = BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50 for 32x32 images, 23.5 million parameters."""

    block, depths = Bottleneck, (3, 4, 6, 3)


class ResNet101(ResNet):
    """ResNet-101 for 32x32 images, 42.5 million parameters."""

    block, depths = Bottleneck, (3, 4, 23, 3)


def _make_shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _apply_shortcut(shortcut: nn.Sequential, x: Tensor) -> Tensor:
    if not len(shortcut):
        return x
    conv, bn = shortcut
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, _BatchNorm)
    return conv_bn(conv, bn, x)
