"""Checks of weights before they are loaded: dtypes and finite numbers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rampart.files.finite import check_finite_weights
from rampart.files.text import dtype_name, type_name

_SHOWN = 12


def check_values(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that weights have dtypes like the network's and are finite.

    Args:
        network: The network to load.
        weights: Tensors by the network's names.
        source: The file's name, for the message.

    Raises:
        ValueError: If a tensor does not; the message names the tensors.
    """
    state = network.state_dict()
    problems = []
    for name, given in weights.items():
        own = state[name]
        ours, theirs = _number_kind(own), _number_kind(given)
        if theirs != ours and not (ours == "integer" and theirs == "float"):
            found = theirs if "," in theirs else dtype_name(given.dtype)
            problems.append(f"{name} is {found} in the file, and the network has {dtype_name(own.dtype)}")
    raise_problems(network, problems, source)
    # Values equal to the network's may be infinite, such as a mask of -inf.
    changed = {n: t.to(state[n].dtype) for n, t in weights.items() if not torch.equal(t.to(state[n]), state[n])}
    check_finite_weights(changed, source)


def _number_kind(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"{dtype_name(tensor.dtype)}, {'without data' if tensor.is_meta else dtype_name(tensor.layout)}"
    if tensor.is_floating_point() and tensor.itemsize > 1:
        return "float"
    kinds = (tensor.is_quantized, tensor.is_complex(), tensor.is_floating_point(), tensor.dtype == torch.bool)
    return dtype_name(tensor.dtype) if any(kinds) else "integer"


def raise_problems(network: nn.Module, problems: list[str], source: str | Path) -> None:
    """Raise a ValueError of one line if there are problems with weights that do not fit."""
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise ValueError(f"{source} does not fit {type_name(network)}: {'; '.join(problems)}")
