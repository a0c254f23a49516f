"""Checks of weights before they are loaded: dtypes, finite numbers, normalisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rampart.files.finite import check_finite_weights
from rampart.files.text import dtype_name, type_name
from rampart.files.weight_names import find_normalisers

_SHOWN = 12
_MOST_CHANNELS = 1024


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


def check_normalisation(network: nn.Module, outside: Mapping[str, Tensor], source: str | Path) -> str:
    """Compare the normalisation that a file keeps outside the network with the network's.

    Args:
        network: The network to load.
        outside: Tensors of the file, by name, that do not belong to the network.
        source: The file's name, for the message.

    Returns:
        Remark for the user; empty if the file has no normalisation.

    Raises:
        ValueError: If the network normalises with other numbers.
    """
    theirs, ours = _normalisations(outside), _normalisations(network.state_dict())
    if not theirs:
        return ""
    if not ours:
        return (
            f"; the file normalises images outside the network, by {_describe(theirs[0])}: the network must do it "
            "itself, with rampart.networks.Normalize as its first layer"
        )
    for numbers in theirs:
        if not any(a.shape == numbers.shape and torch.allclose(a, numbers, atol=1e-4) for a in ours):
            raise ValueError(
                f"{source} was trained with images normalised by {_describe(numbers)}, and {type_name(network)} "
                f"normalises by {_describe(ours[0])}: build it with the file's mean and std"
            )
    return "; the file's normalisation is the network's"


def _normalisations(tensors: Mapping[str, Any]) -> list[Tensor]:
    """Return mean and standard deviation per channel, ``(2, C)``, of each normalisation."""
    pairs = [[tensors[name] for name in pair] for pair in find_normalisers(tensors)]
    return [
        torch.stack([tensor.detach().float().cpu().flatten() for tensor in pair])
        for pair in pairs
        if pair[0].numel() == pair[1].numel() <= _MOST_CHANNELS
    ]


def _describe(numbers: Tensor) -> str:
    mean, std = ([round(value, 4) for value in row] for row in numbers.tolist())
    return f"mean {mean} and std {std}"


def raise_problems(network: nn.Module, problems: list[str], source: str | Path) -> None:
    """Raise a ValueError of one line if there are problems with weights that do not fit."""
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise ValueError(f"{source} does not fit {type_name(network)}: {'; '.join(problems)}")
