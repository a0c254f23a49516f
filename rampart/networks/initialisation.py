"""Random initial weights other than torch's own."""

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

from torch import nn

Initialisation: TypeAlias = Literal["default", "xavier", "he", "ibp"]


def initialise(network: nn.Module, scheme: Initialisation, after_sums: Iterable[nn.Module] = ()) -> None:
    """Draw new random weights for convolutions and linear layers.

    Args:
        network: The network to initialise, in place.
        scheme: ``"xavier"`` is the normal distribution of Glorot and Bengio 2010 (eq. 12's variance), ``"he"`` that of
            He et al. 2015 (eq. 10) for ReLU; both set biases to zero. ``"ibp"`` is the normal distribution of Shi et
            al. 2021 for training with interval bounds, their "IBP initialization": the width of the bounds then neither
            grows nor shrinks with the depth. It keeps torch's biases and last linear layer. ``"default"`` keeps all of
            torch's.
        after_sums: Layers whose inputs are sums of two branches; ``"ibp"`` halves their weights.

    Raises:
        ValueError: If the scheme is unknown.
    """
    if scheme not in get_args(Initialisation):
        raise ValueError(f"init must be one of {', '.join(get_args(Initialisation))}, got {scheme!r}")
    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    if scheme == "ibp":
        _initialise_for_bounds(layers, set(after_sums))
    elif scheme != "default":
        for layer in layers:
            if scheme == "xavier":
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _initialise_for_bounds(layers: list[nn.Conv2d | nn.Linear], after_sums: set[nn.Module]) -> None:
    """Draw weights whose absolute values sum to 2 per output on average: ReLU then halves the width of the bounds."""
    last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    for layer in layers:
        if layer is not last:
            std = math.sqrt(2 * math.pi) / layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=std / 2 if layer in after_sums else std)
