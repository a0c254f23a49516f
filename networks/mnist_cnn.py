"""The network of the paper's MNIST experiments."""

import torch.nn.functional as F
from torch import Tensor, nn


class MNISTCNN(nn.Module):
    """Two 5x5 convolutions and two linear layers (Shaeiri et al. 2020, MNIST; Madry et al. 2018).

    Parameter names are those of the authors' files, so their weights load as they are.

    Args:
        num_classes: Number of logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.fc1 = nn.Linear(1024, 1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, 1, 28, 28)``, float, in [0, 1]."""
        # The same function as convolution, ReLU, pooling, twice, gradients included, in less time on a CPU: the
        # first convolution is a matrix product over patches, whose result lies in memory with channels last, which
        # the second is fastest on, and pooling before ReLU leaves ReLU a quarter of the work.
        patches = F.unfold(images, 5).mT  # (N, 576, 25)
        x = F.linear(patches, self.conv1.weight.flatten(1), self.conv1.bias)  # (N, 576, 32)
        x = F.relu(F.max_pool2d(x.mT.view(-1, 32, 24, 24), 2))  # (N, 32, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 64, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 1024)
        logits: Tensor = self.fc2(x)
        return logits
