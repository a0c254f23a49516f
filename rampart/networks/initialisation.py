"""Random initial weights other than torch's own."""

from typing import Literal, TypeAlias

from torch import nn

Initialisation: TypeAlias = Literal["default", "xavier", "he"]


def initialise(network: nn.Module, scheme: Initialisation) -> None:
    """Draw new random weights for all convolutions and linear layers, and set their biases to zero.

    Args:
        network: The network to initialise, in place.
        scheme: ``"xavier"`` is the normal distribution of Glorot and Bengio 2010 (eq. 12's variance), ``"he"`` that of
            He et al. 2015 (eq. 10) for ReLU; ``"default"`` keeps torch's own weights and biases.

    Raises:
        ValueError: If the scheme is unknown.
    """
    if scheme not in ("default", "xavier", "he"):
        raise ValueError(f"init must be one of default, xavier, he, got {scheme!r}")
    if scheme == "default":
        return
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if scheme == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
