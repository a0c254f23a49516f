"""The paper's MNIST network with a fixed first layer of gates."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from rampart.networks.gates import GateConv2d, Gates
from rampart.networks.mnist_cnn import MNISTCNN


class GatedMNISTCNN(nn.Module):
    """The paper's MNIST network, whose first layer holds fixed gates against large perturbations of black and white.

    The gates are fixed functions of single pixels, a soft form of binarising the image. Perturbing a black or white
    pixel by up to 0.43 does not change their outputs. Only gray pixels can be attacked, so the layer presumes images
    that are mostly black and white. See :mod:`rampart.networks.gates`.

    Parameters have the names and shapes of :class:`MNISTCNN`. That class loads all weights of this one and computes the
    same function with them, up to rounding. The reverse does not hold: this class loads only weights whose first layer
    holds the gates.

    Args:
        num_classes: Number of logits.

    Raises:
        ValueError: If there are fewer than two classes.

    Attributes:
        image_shape: ``(C, H, W)`` of the input images.
    """

    image_shape = (1, 28, 28)

    def __init__(self, num_classes: int = 10) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        super().__init__()
        self.init_args = {"num_classes": num_classes}
        self.conv1 = Gates(32, 5)
        self.conv2 = GateConv2d(32, 64, 5)
        self.fc1 = nn.Linear(1024, 1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, 1, 28, 28)``, float, in [0, 1]."""
        x = self.conv1(images)  # (N, 16, 12, 12), pooled
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 64, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 1024)
        logits: Tensor = self.fc2(x)
        return logits

    def plain(self) -> MNISTCNN:
        """Return the paper's network on the same parameters: the form that evaluations attack and ONNX files hold.

        It shares parameters, linear layers and hooks with this network, and is in the same mode.
        """
        plain = MNISTCNN.__new__(MNISTCNN)
        plain.__dict__.update(copy.copy(self).__dict__)
        convolutions = {"conv1": _plain_convolution(self.conv1), "conv2": _plain_convolution(self.conv2)}
        plain._modules = {**self._modules, **convolutions}
        plain.init_args = {**self.init_args, "init": "default"}
        return plain


def _plain_convolution(layer: nn.Conv2d) -> nn.Conv2d:
    rows, columns = layer.kernel_size
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, (rows, columns), device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)
