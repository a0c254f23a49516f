"""Compare the normalisation of images in a file with that of a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rampart.files.text import type_name
from rampart.files.weight_names import find_normalisers
from rampart.networks import Normalize

_MOST_CHANNELS = 1024
_TOLERANCE = 1e-4  # authors round the same mean and standard deviation to three or four digits

Pair = tuple[str, str]


def check_normalisation(
    network: nn.Module, weights: Mapping[str, Tensor], outside: Mapping[str, Tensor], source: str | Path
) -> tuple[str, set[str]]:
    """Compare the normalisation in a file with the network's.

    A file has it in the network's :class:`rampart.networks.Normalize`, or outside the network.

    Args:
        network: The network to load.
        weights: Tensors of the file by the network's names.
        outside: Tensors of the file, by their names in it, that do not belong to the network.
        source: The file's name, for the message.

    Returns:
        Remark for the user, and the names of the tensors that it is about; empty if neither has a normalisation.

    Raises:
        ValueError: If the network normalises with other numbers.
    """
    ours, theirs = _normalisations(network.state_dict()), _normalisations(outside)
    names = {name for pair in theirs for name in pair} | {name for pair in ours for name in pair if name not in weights}
    given = list(theirs.values())
    for pair, numbers in _normalisations(weights).items():
        if isinstance(network.get_submodule(pair[0].rpartition(".")[0]), Normalize):
            _check_equal(network, [ours[pair]], numbers, source)
            given.append(numbers)
    if not ours and given:
        return (
            f"; the file normalises images outside the network, by {_describe(given[0])}: the network must do it "
            "itself, with rampart.networks.Normalize as its first layer"
        ), names
    for numbers in theirs.values():
        _check_equal(network, list(ours.values()), numbers, source)
    if given:
        return f"; the file's normalisation is the network's, {_describe(given[0])}", names
    if missing := [numbers for pair, numbers in ours.items() if pair[0] not in weights]:
        return f"; the file has no normalisation, and the network keeps {_describe(missing[0])}", names
    return "", set()


def _check_equal(network: nn.Module, ours: list[Tensor], theirs: Tensor, source: str | Path) -> None:
    for own in ours:
        # A file of lower precision has rounded numbers.
        if own.shape == theirs.shape and torch.allclose(own.to(theirs.dtype).float(), theirs.float(), atol=_TOLERANCE):
            return
    mean, std = _round(theirs)
    remedy = "build it with the file's numbers"
    if {"mean", "std"} <= set(getattr(network, "init_args", ())):
        remedy += f", mean and std in its init_args or --model.network.mean='{mean}' --model.network.std='{std}'"
    raise ValueError(
        f"{source} was trained with images normalised by {_describe(theirs)}, and {type_name(network)} normalises by "
        f"{_describe(ours[0])}: {remedy}"
    )


def _normalisations(tensors: Mapping[str, Any]) -> dict[Pair, Tensor]:
    """Return mean and standard deviation per channel, ``(2, C)``, of each normalisation by the names of the two."""
    found = {}
    for pair in find_normalisers(tensors):
        mean, std = (tensors[name].detach().cpu().flatten() for name in pair)
        if mean.numel() == std.numel() <= _MOST_CHANNELS:
            found[pair] = torch.stack([mean, std])
    return found


def _round(numbers: Tensor) -> tuple[list[float], list[float]]:
    mean, std = ([round(value, 6) for value in row] for row in numbers.tolist())
    return mean, std


def _describe(numbers: Tensor) -> str:
    mean, std = _round(numbers)
    return f"mean {mean} and std {std}"
