"""Pretrained networks for ``torch.hub.load``.

    network = torch.hub.load("FOLDER OF THIS REPOSITORY", "mnist_cnn", weights="fast", source="local")

returns a network in eval mode that takes images in [0, 1]. What each set of weights reaches stands in
pretrained/README.md.
"""

from pathlib import Path

from networks import MNISTCNN
from networks.weights import load_weights

dependencies = ["torch", "safetensors"]

PRETRAINED = Path(__file__).parent / "pretrained"


def mnist_cnn(weights: str | None = "fast") -> MNISTCNN:
    """The paper's MNIST network: logits ``(N, 10)`` of images ``(N, 1, 28, 28)``, float, in [0, 1].

    Args:
        weights: A recipe of ``pretrained/mnist``, such as ``"fast"``, or None for a random initialisation.

    Raises:
        ValueError: If there are no weights of this name.
    """
    network = MNISTCNN()
    if weights is not None:
        path = PRETRAINED / "mnist" / weights / "weights.safetensors"
        if not path.is_file():
            known = sorted(file.parent.name for file in PRETRAINED.glob("mnist/*/weights.safetensors"))
            raise ValueError(f"weights must be one of {', '.join(known)} or None, got {weights!r}")
        load_weights(network, path)
    return network.eval()
