"""WideResNets for 32x32 images."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rampart.networks.cifar_network import CIFAR10_MEAN, CIFAR10_STD, CIFARNetwork
from rampart.networks.preact_resnet import PreActBlock


class WideBlock(PreActBlock):
    """A pre-activation block whose shortcut's convolution has the name that WideResNets give it."""

    def _add_projection(self, conv: nn.Conv2d | None) -> None:
        self.convShortcut = conv

    @property
    def projection(self) -> nn.Module | None:
        """The shortcut's convolution; None where the shortcut is the identity."""
        return self.convShortcut


class WideResNet(CIFARNetwork):
    """WideResNet (Zagoruyko and Komodakis 2016) for 32x32 images: WRN-28-10 by default, WRN-34-10 with ``depth`` 34.

    Names, numbers and initial weights are those of TRADES and RobustBench.

    Args:
        num_classes: Number of logits.
        mean: One number per channel, pixel scale; CIFAR-10's by default.
        std: One number per channel, pixel scale, above 0; CIFAR-10's by default.
        depth: Number of convolutions on the longest path: 4 more than a multiple of 6, such as 28 or 34.
        widen_factor: The three stages have 16, 32 and 64 times as many channels.

    Raises:
        ValueError: If there are fewer than two classes, or depth or factor is not allowed.

    Attributes:
        other_names: Name of a part in TRADES' files that has no effect on the logits, and None.
        image_shape: ``(C, H, W)`` of the input images.
    """

    other_names: ClassVar[Mapping[str, None]] = {"sub_block1": None}

    def __init__(
        self,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        depth: int = 28,
        widen_factor: int = 10,
    ) -> None:
        super().__init__(num_classes, mean, std, {"depth": depth, "widen_factor": widen_factor})
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 4 more than a multiple of 6, such as 28 or 34, got {depth}")

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            blocks = [WideBlock(inputs, outputs, stride)]
            blocks += [WideBlock(outputs, outputs, stride=1) for _ in range((depth - 4) // 6 - 1)]
            return nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))

        width = 16 * widen_factor
        self.conv1 = nn.Conv2d(len(mean), 16, 3, padding=1, bias=False)
        self.block1 = stage(16, width, stride=1)
        self.block2 = stage(width, 2 * width, stride=2)
        self.block3 = stage(2 * width, 4 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for normalised images ``(N, C, 32, 32)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))  # (N, 64 widen_factor, 8, 8)
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits
