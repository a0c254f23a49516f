"""A network's weights in the layouts of the robustness library and of Shaeiri et al. 2020."""

from typing import Any

from torch import Tensor, nn

from rampart.networks import MNISTCNN, ResNet50, plain_form
from rampart.networks.resnet import ResNet

Weights = dict[str, Tensor]


def robustness_checkpoint(network: nn.Module, weights: Weights) -> dict[str, Any]:
    """Return a checkpoint that robustness's ``make_and_restore_model`` restores: ``model`` and ``epoch``.

    The names in ``model`` are those of its AttackerModel in DataParallel. It holds no optimizer, and the epoch is 0.

    Args:
        network: The network.
        weights: Its state_dict.

    Raises:
        ValueError: If the library has no such network.
    """
    if not isinstance(network, ResNet) or _channels(network) != 3:
        raise ValueError(
            f"robustness's networks for CIFAR-10 are ResNets with three channels, got {_describe(network)}: "
            "export it as pth, safetensors or onnx"
        )
    return {"model": {f"module.{name}": value for name, value in _attacker_model(weights).items()}, "epoch": 0}


def shaeiri_weights(network: nn.Module, weights: Weights) -> Weights:
    """Return the weights that Shaeiri et al.'s MNIST/test.py or CIFAR10/test.py loads.

    For MNIST it is a plain state_dict, for CIFAR-10 that of robustness's AttackerModel.

    Args:
        network: The network.
        weights: Its state_dict.

    Raises:
        ValueError: If it is neither of their two networks.
    """
    if isinstance(plain_form(network), MNISTCNN):
        return {name: value.detach().cpu() for name, value in plain_form(network).state_dict().items()}
    sizes = getattr(network, "init_args", {})
    if (
        not isinstance(network, ResNet50)
        or _channels(network) != 3
        or (sizes["width"], sizes["num_classes"]) != (64, 10)
    ):
        raise ValueError(
            "Shaeiri et al.'s networks are MNISTCNN and ResNet50 with three channels, width 64 and 10 classes, got "
            f"{_describe(network)}: export it as pth, safetensors or onnx"
        )
    return _attacker_model(weights)


def _attacker_model(weights: Weights) -> Weights:
    """Return the state_dict of robustness's AttackerModel, in its order: every tensor twice, but with one data."""
    mean, std = weights["normalize.mean"], weights["normalize.std"]
    model = {name: value for name, value in weights.items() if not name.startswith("normalize.")}
    return (
        {"normalizer.new_mean": mean, "normalizer.new_std": std}
        | {f"model.{name}": value for name, value in model.items()}
        | {"attacker.normalize.new_mean": mean, "attacker.normalize.new_std": std}
        | {f"attacker.model.{name}": value for name, value in model.items()}
    )


def _channels(network: ResNet) -> int:
    return len(network.init_args["mean"])


def _describe(network: nn.Module) -> str:
    name = type(network).__name__
    if not isinstance(network, ResNet):
        return name
    sizes = network.init_args
    return f"{name} with {_channels(network)} channels, width {sizes['width']} and {sizes['num_classes']} classes"
