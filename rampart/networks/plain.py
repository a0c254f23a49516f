"""The form of a network that evaluations attack."""

import copy
from types import FunctionType

from torch import nn


def plain_form(network: nn.Module) -> nn.Module:
    """Return the form of a network that validation, test, evaluation and export use.

    A network whose training form differs from the form that users of its weights load and attack has a method
    ``plain``, which returns that form: see :meth:`rampart.networks.GatedMNISTCNN.plain`. Such networks are also found
    inside other modules (``nn.Sequential``, ``nn.DataParallel``); inside ``torch.compile``, their plain form is not
    compiled.

    Args:
        network: Any network; not changed.

    Returns:
        The network itself if neither it nor a part of it has such a method. Otherwise a copy that shares parameters,
        buffers and all other layers.
    """
    if isinstance(getattr(type(network), "plain", None), FunctionType):
        plain: nn.Module = network.plain()  # type: ignore[operator]
        return plain
    compiled: nn.Module | None = getattr(network, "_orig_mod", None)
    if compiled is not None:
        plain = plain_form(compiled)
        return network if plain is compiled else plain
    forms = {name: plain_form(child) for name, child in network.named_children()}
    if all(form is child for form, child in zip(forms.values(), network.children(), strict=True)):
        return network
    plain = copy.copy(network)
    plain._modules = {**network._modules, **forms}
    return plain
