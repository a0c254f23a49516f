"""Find weights that are no numbers."""

from collections.abc import Mapping

from torch import Tensor, nn


def first_nonfinite(network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> str | None:
    """Return the name of a network's first tensor with NaN in it, or infinity where it is a parameter.

    A buffer may be infinite, as a mask of attention is.

    Args:
        network: Tells parameters from buffers.
        weights: Its state_dict from elsewhere; its own if None.
    """
    parameters = dict(network.named_parameters())
    for name, tensor in (network.state_dict() if weights is None else weights).items():
        broken = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if bool(broken.any()):
            return name
    return None
