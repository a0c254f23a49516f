"""Pretrained networks for ``torch.hub.load``.

    network = torch.hub.load("FOLDER OF THIS REPOSITORY", "mnist_cnn", weights="fast", source="local")

returns a network in eval mode for images in [0, 1]. The accuracies of each set of weights are in pretrained/README.md.
"""

from pathlib import Path

from rampart.files import load_weights
from rampart.networks import MNISTCNN

dependencies = ["torch", "safetensors"]

PRETRAINED = Path(__file__).parent / "pretrained"


def mnist_cnn(weights: str | None = "fast") -> MNISTCNN:
    """Return the paper's MNIST network: images ``(N, 1, 28, 28)``, float, in [0, 1], to logits ``(N, 10)``.

    The weights ``"fast"`` were trained with fixed gates as the first layer. They are returned in the plain form that
    evaluations attack. To train them further, load them into :class:`rampart.networks.GatedMNISTCNN`.

    Args:
        weights: Name of a folder of ``pretrained/mnist``, such as ``"fast"``; None for random weights.

    Raises:
        ValueError: If there are no weights of this name, or none at all, as in an installed copy.
    """
    network = MNISTCNN()
    if weights is not None:
        files = {file.parent.name: file for file in PRETRAINED.glob("mnist/*/weights.safetensors")}
        if not files:
            raise ValueError(
                f"{PRETRAINED} has no pretrained weights, which are not part of an installed copy: give torch.hub.load "
                f"the folder of the repository, or weights=None; got weights={weights!r}"
            )
        if weights not in files:
            raise ValueError(f"weights must be one of {', '.join(sorted(files))} or None, got {weights!r}")
        load_weights(network, files[weights])
    return network.eval()
