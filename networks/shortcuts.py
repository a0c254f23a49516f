"""When a network may compute what its layers compute without calling them."""

import torch
from torch import nn


def may_bypass(*layers: nn.Module) -> bool:
    """Whether no one would miss the call of these layers.

    Hooks would (pruning, ``spectral_norm``, feature extraction), and so would whoever records the network's
    operations to run them on other inputs: ``torch.export`` and ``torch.jit.trace``.
    """
    recorded = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    return not recorded and not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in layers
    )
