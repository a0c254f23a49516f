"""Pretrained networks for ``torch.hub.load``.

    network = torch.hub.load("FOLDER OF THIS REPOSITORY", "mnist_cnn", weights="fast", source="local")

returns a network in eval mode for images in [0, 1]; ``cifar_resnet`` is a ResNet for CIFAR-10. The accuracies of each
set of weights are in pretrained/README.md.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

import rampart.networks
from rampart.files import load_weights
from rampart.networks import MNISTCNN, ResNet18

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
        load_weights(network, _find_weights("mnist", weights))
    return network.eval()


def cifar_resnet(weights: str | None = None) -> nn.Module:
    """Return a ResNet for CIFAR-10: images ``(N, 3, 32, 32)``, float, in [0, 1], to logits ``(N, 10)``.

    Prints one line with the accuracies of the weights on test images, clean and under attack.

    Args:
        weights: Name of a folder of ``pretrained/cifar10``, whose record names the network and its width; None for a
            ResNet-18 with random weights.

    Raises:
        ValueError: If there are no weights of this name, or none at all, as in an installed copy.
    """
    if weights is None:
        return ResNet18().eval()
    file = _find_weights("cifar10", weights)
    record = json.loads((file.parent / "record.json").read_text())
    name = record["network"]["class_path"].removeprefix("rampart.networks.")
    network: nn.Module = getattr(rampart.networks, name)(**record["network"].get("init_args", {}))
    load_weights(network, file)
    print(f"{weights}: {_describe(record)}")
    return network.eval()


def _find_weights(data: str, name: str) -> Path:
    files = {file.parent.name: file for file in PRETRAINED.glob(f"{data}/*/weights.safetensors")}
    if not files:
        raise ValueError(
            f"{PRETRAINED} has no pretrained weights, which are not part of an installed copy: give torch.hub.load "
            f"the folder of the repository, or weights=None; got weights={name!r}"
        )
    if name not in files:
        raise ValueError(f"weights must be one of {', '.join(sorted(files))} or None, got {name!r}")
    return files[name]


def _describe(record: dict[str, Any]) -> str:
    parts = [f"{100 * record['pgd']['clean']['accuracy']:.1f}% clean"]
    for report, attack in ((record["pgd"], "PGD-200"), (record["apgd"], "APGD-CE and APGD-T")):
        rates = ", ".join(f"{100 * rate['accuracy']:.1f}% at {255 * rate['eps']:.0f}/255" for rate in report["robust"])
        parts.append(f"{rates} under {attack} on {report['images']:,} images")
    return "; ".join(parts)
