"""Find weights that are NaN or infinite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rampart.files.text import join_names


def count_nonfinite(weights: nn.Module | Mapping[str, Any]) -> dict[str, int]:
    """Count the numbers that are not finite, by tensor.

    Args:
        weights: A network or a state_dict. In a network's buffers only NaN counts, since a buffer such as an attention
            mask may be infinite. In a state_dict every tensor is treated as a parameter.

    Returns:
        Counts above 0 by the tensor's name, in the order of the state_dict.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    buffers = {name for name, _ in weights.named_buffers()} if isinstance(weights, nn.Module) else set()
    counts = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            counts[name] = int((tensor.isnan() if name in buffers else ~tensor.isfinite()).sum())
    return {name: count for name, count in counts.items() if count}


def first_nonfinite(network: nn.Module) -> str | None:
    """Return the name of a network's first tensor that is not finite, or None; see :func:`count_nonfinite`."""
    return next(iter(count_nonfinite(network)), None)


def check_finite_weights(weights: nn.Module | Mapping[str, Any], source: str | Path) -> None:
    """Check that weights are finite, because the predictions of a network with other weights mean nothing.

    Args:
        weights: See :func:`count_nonfinite`.
        source: Name of the file or network, for the message.

    Raises:
        ValueError: If there are any; the message names the tensors and counts the numbers.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if counts := count_nonfinite(weights):
        named = [f"{name} ({count:,} of {state[name].numel():,})" for name, count in counts.items()]
        raise ValueError(
            f"{source} holds numbers that are not finite (NaN or infinite), as after a training that diverged: "
            f"{join_names(named)}; take an earlier checkpoint"
        )
