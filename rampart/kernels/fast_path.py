"""Tell whether a network may compute its layers' results without calling them."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def may_bypass(inputs: object, *layers: nn.Module) -> bool:
    """Tell whether the call of these layers on these inputs can be left out.

    Not where a layer has hooks (pruning, ``spectral_norm``, feature extraction), and not where the network's operations
    are recorded or transformed: see :func:`is_observed`. ``torch.fx`` is known by its inputs.
    """
    return (
        not is_observed()
        and not isinstance(inputs, Proxy)
        and not any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in layers
        )
    )


def is_observed() -> bool:
    """Tell whether something else than a plain evaluation sees each operation, and wants torch's ordinary ones.

    It may record them to run them on other inputs (``torch.compile``, ``torch.export``, ``jit.trace``, ``make_fx``),
    or transform them (``torch.func``, forward-mode derivatives, torch's own modes such as its counter of operations). A
    custom mode sees what a plain evaluation computes.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(type(mode).__module__.startswith("torch.") for mode in _get_current_dispatch_mode_stack())
        or torch._C._get_tracing_state() is not None
    )
