"""ResNets for 32x32 images with BatchNorm and ReLU before the convolutions: PreActResNet-18."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rampart.kernels import conv_bn
from rampart.networks.cifar_network import CIFAR10_MEAN, CIFAR10_STD, CIFARNetwork


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, with a shortcut connection (He et al. 2016b, figure 4e)."""

    def __init__(self, inputs: int, outputs: int, stride: int, raw_shortcut: bool = False) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self._add_projection(nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None)

    def _add_projection(self, conv: nn.Conv2d | None) -> None:
        self.shortcut = None if conv is None else nn.Sequential(conv)

    @property
    def projection(self) -> nn.Module | None:
        """The shortcut's convolution; None where the shortcut is the identity."""
        return self.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, outputs, H / stride, W / stride)``."""
        activated = F.relu(self.bn1(x))  # bn1 follows a sum and can't be folded
        out: Tensor = self.conv2(F.relu(conv_bn(self.conv1, self.bn2, activated)))
        return out + (x if self.projection is None else self.projection(x if self.raw_shortcut else activated))


class PreActResNet18(CIFARNetwork):
    """ResNet-18 with BatchNorm and ReLU before the convolutions (He et al. 2016b), for 32x32 images.

    Names are those of Wong et al. 2020 and Rice et al. 2020. Files of weights do not tell the two apart: names and
    shapes are the same, and the functions differ by ``raw_shortcut``.

    Args:
        num_classes: Number of logits.
        mean: One number per channel, pixel scale; CIFAR-10's by default.
        std: One number per channel, pixel scale, above 0; CIFAR-10's by default.
        width: Channels of the stem; the four stages have 1, 2, 4 and 8 times as many.
        raw_shortcut: Input of a shortcut's convolution: False is after BatchNorm and ReLU, as in Rice et al. 2020 and
            most later code; True is before them, as in Wong et al. 2020.
        last_bn: BatchNorm and ReLU before the pooling, as in the authors' code. False is without them, as in
            RobustBench's ``Wong2020Fast``.

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
        raw_shortcut: bool = False,
        last_bn: bool = True,
    ) -> None:
        super().__init__(num_classes, mean, std, {"width": width})
        self.init_args |= {"raw_shortcut": raw_shortcut, "last_bn": last_bn}

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = PreActBlock(inputs, outputs, stride, raw_shortcut)
            return nn.Sequential(first, PreActBlock(outputs, outputs, 1, raw_shortcut))

        self.conv1 = nn.Conv2d(len(mean), width, 3, padding=1, bias=False)
        self.layer1 = stage(width, width, stride=1)
        self.layer2 = stage(width, 2 * width, stride=2)
        self.layer3 = stage(2 * width, 4 * width, stride=2)
        self.layer4 = stage(4 * width, 8 * width, stride=2)
        self.bn = nn.BatchNorm2d(8 * width) if last_bn else None
        self.linear = nn.Linear(8 * width, num_classes)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for normalised images ``(N, C, 32, 32)``."""
        x = self.conv1(x)  # (N, width, 32, 32)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        x = x if self.bn is None else F.relu(self.bn(x))
        logits: Tensor = self.linear(x.mean((2, 3)))  # (N, 8 width, 4, 4) -> (N, 8 width)
        return logits
