"""Networks whose weights and robust accuracy others have published. Layers are named as in their files."""

from collections import OrderedDict

from torch import Tensor, nn


class TradesSmallCNN(nn.Module):
    """The MNIST network of TRADES (Zhang et al. 2019): four 3x3 convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Sequential(
            OrderedDict([
                ("conv1", nn.Conv2d(1, 32, 3)), ("relu1", nn.ReLU()),
                ("conv2", nn.Conv2d(32, 32, 3)), ("relu2", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
                ("conv3", nn.Conv2d(32, 64, 3)), ("relu3", nn.ReLU()),
                ("conv4", nn.Conv2d(64, 64, 3)), ("relu4", nn.ReLU()), ("pool2", nn.MaxPool2d(2)),
            ])
        )  # fmt: skip
        self.classifier = nn.Sequential(
            OrderedDict([
                ("fc1", nn.Linear(1024, 200)), ("relu1", nn.ReLU()), ("drop", nn.Dropout(0.5)),
                ("fc2", nn.Linear(200, 200)), ("relu2", nn.ReLU()), ("fc3", nn.Linear(200, 10)),
            ])
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, 10)`` for images ``(N, 1, 28, 28)``, float, in [0, 1]."""
        logits: Tensor = self.classifier(self.feature_extractor(images).flatten(1))
        return logits


def wong_kolter_cnn() -> nn.Module:
    """Build the MNIST network of Wong and Kolter 2018: logits ``(N, 10)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
