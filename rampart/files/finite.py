"""Find weights that are no numbers."""

from torch import nn


def first_nonfinite(network: nn.Module) -> str | None:
    """Return the name of a network's first tensor with NaN in it, or infinity where it is a parameter.

    A buffer may be infinite, as a mask of attention is.
    """
    parameters = dict(network.named_parameters())
    for name, tensor in network.state_dict().items():
        broken = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if bool(broken.any()):
            return name
    return None
