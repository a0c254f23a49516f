"""Networks and the attack loop as papers publish them, for comparison with Rampart."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rampart.networks import MNISTCNN, ResNet18


class PlainMNISTCNN(MNISTCNN):
    """The MNIST CNN with its layers computed in the order of the paper's text."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, classes)``."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.view(-1, 1024))))
        return logits


class PlainResNet18(ResNet18):
    """ResNet-18 with separate BatchNorm layers and images in torch's default memory format."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, classes)``."""
        x = F.relu(self.bn1(self.conv1(self.normalize(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = _plain_block(block, x)
        logits: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return logits


def _plain_block(block: Any, x: Tensor) -> Tensor:
    out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return F.relu(out + block.shortcut(x))


def papers_loop(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int, start: Tensor
) -> Tensor:
    """Run PGD as in the published code of Shaeiri et al. 2020, which computes the weights' gradients too."""
    adv = start
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        network.zero_grad()
        F.cross_entropy(network(adv), labels).backward()  # type: ignore[no-untyped-call]
        assert adv.grad is not None
        adv = adv + step_size * adv.grad.sign()
        adv = (images + (adv - images).clamp(-eps, eps)).clamp(0, 1)
    return adv.detach()
