"""A custom network: any torch.nn.Module that maps images in [0, 1] to logits."""

from torch import Tensor, nn

from rampart.networks import Normalize


class MyNetwork(nn.Module):
    """A small convolutional network for images of any size.

    Args:
        num_classes: Number of logits.
        channels: Channels of the images: 3 for RGB, 1 for gray.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Normalize([0.5] * channels, [0.25] * channels),  # inside the network: attacks see images in [0, 1]
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, channels, H, W)``, float, in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits
