"""Pretrained networks for ``torch.hub.load``.

    network = torch.hub.load("FOLDER OF THIS REPOSITORY", "mnist_cnn", weights="fast", source="local")

returns a network in eval mode that takes images in [0, 1]. What each set of weights reaches stands in
pretrained/README.md.
"""

from pathlib import Path

from rampart.files.weights import load_weights
from rampart.networks import MNISTCNN

dependencies = ["torch", "safetensors"]

PRETRAINED = Path(__file__).parent / "pretrained"


def mnist_cnn(weights: str | None = "fast") -> MNISTCNN:
    """The paper's MNIST network: logits ``(N, 10)`` of images ``(N, 1, 28, 28)``, float, in [0, 1].

    Args:
        weights: A recipe of ``pretrained/mnist``, such as ``"fast"``, or None for a random initialisation.

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
