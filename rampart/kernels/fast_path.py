"""Checks that a network may compute its layers' results by a faster path, without calling the layers."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def can_skip_calls(inputs: object, *layers: nn.Module) -> bool:
    """Return True if nothing needs these layers to be called: no hooks, no tracing, no transformation.

    Pruning, ``spectral_norm`` and feature extraction work by hooks. Tracing and transformation are those of
    :func:`is_traced_or_transformed`, and ``torch.fx``, which is recognised by its inputs.

    Args:
        inputs: Input of the network or of the first layer.
        layers: Layers that the faster path would not call.
    """
    return (
        not is_traced_or_transformed()
        and not isinstance(inputs, Proxy)
        and not any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in layers
        )
    )


def is_traced_or_transformed() -> bool:
    """Return True if the current operations are recorded or transformed, and so should be torch's ordinary ones.

    Recorders run them again on other inputs: ``torch.compile``, ``torch.export``, ``jit.trace``, ``make_fx``.
    Transformations are ``torch.func``, forward-mode derivatives, and the dispatch modes that torch defines, such as its
    FLOP counter. Dispatch modes defined elsewhere do not count: they see the faster path's operations.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(type(mode).__module__.startswith("torch.") for mode in _get_current_dispatch_mode_stack())
        or torch._C._get_tracing_state() is not None
    )
