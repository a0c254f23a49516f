"""The networks for 32x32 images, narrow, and their functions as the papers describe them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rampart.networks import PreActResNet18, ResNet18, ResNet34, ResNet50, ResNet101, WideResNet
from rampart.networks.cifar_network import CIFARNetwork
from rampart.networks.resnet import Bottleneck, ResNet


class Bottlenecks(ResNet):
    """One block of three convolutions per stage."""

    block, depths = Bottleneck, (1, 1, 1, 1)


NARROW: dict[str, Callable[[], CIFARNetwork]] = {
    "ResNet-18": partial(ResNet18, width=8),
    "ResNet-34": partial(ResNet34, width=4),
    "Bottlenecks": partial(Bottlenecks, width=4),
    "ResNet-50": partial(ResNet50, width=4),
    "ResNet-101": partial(ResNet101, width=2),
    "PreActResNet-18": partial(PreActResNet18, width=8),
    "PreActResNet-18, Wong": partial(PreActResNet18, width=8, raw_shortcut=True),
    "PreActResNet-18, RobustBench": partial(PreActResNet18, width=8, raw_shortcut=True, last_bn=False),
    "WRN-10-1": partial(WideResNet, depth=10, widen_factor=1),
    "WRN-16-2": partial(WideResNet, depth=16, widen_factor=2),
}
EACH_BLOCK = ("ResNet-18", "Bottlenecks", "WRN-10-1")  # for tests that take long


def compute_by_layers(network: Any, images: Tensor) -> Tensor:
    """Return the logits by calling each layer in the order of the papers."""
    x = network.conv1(network.normalize(images))
    if hasattr(network, "block1"):
        for stage in (network.block1, network.block2, network.block3):
            for block in stage.layer:
                x = _preact_block(block, x, block.convShortcut, raw=False)
        return network.fc(F.avg_pool2d(F.relu(network.bn1(x)), 8).flatten(1))  # type: ignore[no-any-return]
    preact = not hasattr(network, "bn1")
    x = x if preact else F.relu(network.bn1(x))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            if preact:
                x = _preact_block(block, x, block.shortcut, network.init_args["raw_shortcut"])
            else:
                x = F.relu(_convolve(block, x) + block.shortcut(x))
    if preact and network.init_args["last_bn"]:
        x = F.relu(network.bn(x))
    return network.linear(F.avg_pool2d(x, 4).flatten(1))  # type: ignore[no-any-return]


def _convolve(block: Any, x: Tensor) -> Tensor:
    x = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return block.bn3(block.conv3(F.relu(x))) if hasattr(block, "conv3") else x


def _preact_block(block: Any, x: Tensor, shortcut: Any, raw: bool) -> Tensor:
    first = F.relu(block.bn1(x))
    second = F.relu(block.bn2(block.conv1(first)))
    kept = x if shortcut is None else shortcut(x if raw else first)
    return block.conv2(second) + kept  # type: ignore[no-any-return]
