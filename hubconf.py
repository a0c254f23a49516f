"""Pretrained networks for ``torch.hub.load``.

    network = torch.hub.load("FOLDER OF THIS REPOSITORY", "mnist_cnn", weights="fast", source="local")

returns a network in eval mode for images in [0, 1]. ``certified_cnn`` is a network for MNIST that was trained for
certificates, ``cifar_resnet`` a ResNet for CIFAR-10. The accuracies of each set of weights are in pretrained/README.md.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

import rampart.networks
from rampart.files import load_weights
from rampart.networks import CNN5, MNISTCNN, ResNet18

dependencies = ["torch", "safetensors"]

PRETRAINED = Path(__file__).parent / "pretrained"
CERTIFIED = "certified_"  # begins the names of the folders with networks of certified training


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


def certified_cnn(weights: str | None = "cpu") -> nn.Module:
    """Return a network of certified training for MNIST: images ``(N, 1, 28, 28)``, float, in [0, 1], to ``(N, 10)``.

    :func:`rampart.bounds.certified_mask` certifies images. Prints one line with the accuracies of the weights on test
    images: clean, under attack, and certified.

    Args:
        weights: End of the name of a folder ``pretrained/mnist/certified_...``, whose record names the network; None
            for a CNN5 with random weights, without gates.

    Raises:
        ValueError: If there are no weights of this name, or none at all, as in an installed copy.
    """
    return CNN5().eval() if weights is None else _load_recorded(weights, _find_weights("mnist", weights, CERTIFIED))


def cifar_resnet(weights: str | None = None) -> nn.Module:
    """Return a ResNet for CIFAR-10: images ``(N, 3, 32, 32)``, float, in [0, 1], to logits ``(N, 10)``.

    Prints one line with the accuracies of the weights on test images, clean and under attack.

    Args:
        weights: Name of a folder of ``pretrained/cifar10``, whose record names the network and its width; None for a
            ResNet-18 with random weights.

    Raises:
        ValueError: If there are no weights of this name, or none at all, as in an installed copy.
    """
    return ResNet18().eval() if weights is None else _load_recorded(weights, _find_weights("cifar10", weights))


def _load_recorded(name: str, file: Path) -> nn.Module:
    """Build the network that the weights' record names, load them, and print their accuracies in one line."""
    record = json.loads((file.parent / "record.json").read_text())
    kind = record["network"]["class_path"].removeprefix("rampart.networks.")
    network: nn.Module = getattr(rampart.networks, kind)(**record["network"].get("init_args", {}))
    load_weights(network, file)
    print(f"{name}: {_describe(record)}")
    return network.eval()


def _find_weights(data: str, name: str, prefix: str = "") -> Path:
    """Find weights by the name of their folder after a prefix; networks of certified training have one of their own."""
    folders = {file.parent.name: file for file in PRETRAINED.glob(f"{data}/*/weights.safetensors")}
    files = {
        folder.removeprefix(prefix): file
        for folder, file in folders.items()
        if folder.startswith(CERTIFIED) == (prefix == CERTIFIED)
    }
    if not files:
        raise ValueError(
            f"{PRETRAINED} has no pretrained weights, which are not part of an installed copy: give torch.hub.load "
            f"the folder of the repository, or weights=None; got weights={name!r}"
        )
    if name not in files:
        raise ValueError(f"weights must be one of {', '.join(sorted(files))} or None, got {name!r}")
    return files[name]


def _describe(record: dict[str, Any]) -> str:
    if "certificates" in record:
        return _describe_certified(record["certificates"], record.get("autoattack"))
    parts = [f"{_percent(record['pgd']['clean'])} clean"]
    for report, attack in ((record["pgd"], "PGD-200"), (record["apgd"], "APGD-CE and APGD-T")):
        rates = ", ".join(f"{_percent(rate)} at {255 * rate['eps']:.0f}/255" for rate in report["robust"])
        parts.append(f"{rates} under {attack} on {report['images']:,} images")
    return "; ".join(parts)


def _describe_certified(report: dict[str, Any], autoattack: dict[str, Any] | None) -> str:
    """Return the accuracies at the largest eps."""
    robust, certified = report["robust"][-1], report["certificates"]["certified"][-1]
    text = f"{_percent(report['clean'])} clean; at {robust['eps']:g}, {_percent(certified)} certified and "
    text += f"{_percent(robust)} under PGD-10 on {report['images']:,} images"
    if autoattack is None:
        return text
    return f"{text}; {_percent(autoattack['robust'][-1])} under AutoAttack on {autoattack['images']:,} images"


def _percent(rate: dict[str, Any]) -> str:
    return f"{100 * rate['accuracy']:.1f}%"
