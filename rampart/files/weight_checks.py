"""Checks of weights before a network takes them: kinds of numbers, finite numbers, normalisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rampart.files.weight_names import normalisers

_SHOWN = 12
_MOST_CHANNELS = 1024


def check_finite_weights(weights: nn.Module | Mapping[str, Any], source: str | Path) -> None:
    """Refuse weights that are not finite: what such a network predicts means nothing.

    Args:
        weights: A network or its state_dict.
        source: Where they come from, for the error.

    Raises:
        ValueError: If there are any; the message names the tensors and counts the numbers.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # A buffer may be infinite by its nature, as a mask is.
    masks = {name for name, _ in weights.named_buffers()} if isinstance(weights, nn.Module) else set()
    floats = {n: t for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
    counts = {n: int((t.isnan() if n in masks else ~t.isfinite()).sum()) for n, t in floats.items()}
    bad = [f"{name} ({count:,} of {floats[name].numel():,})" for name, count in counts.items() if count]
    if bad:
        raise ValueError(
            f"{source} holds numbers that are not finite (NaN or infinite), as after a training that diverged: "
            f"{listed(bad)}; take an earlier checkpoint"
        )


def check_values(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse kinds of numbers that are not the network's, and numbers that are not finite.

    Raises:
        ValueError: The message names the tensors.
    """
    state = network.state_dict()
    problems = []
    for name, given in weights.items():
        own = state[name]
        ours, theirs = _number_kind(own), _number_kind(given)
        if theirs != ours and not (ours == "integer" and theirs == "float"):
            told = theirs if "," in theirs else format_name(given.dtype)
            problems.append(f"{name} is {told} in the file, and the network has {format_name(own.dtype)}")
    refuse(network, problems, source)
    # What the network has itself, such as a mask of -inf, may be loaded.
    changed = {n: t.to(state[n].dtype) for n, t in weights.items() if not torch.equal(t.to(state[n]), state[n])}
    check_finite_weights(changed, source)


def _number_kind(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"{format_name(tensor.dtype)}, {'without data' if tensor.is_meta else format_name(tensor.layout)}"
    if tensor.is_floating_point() and tensor.itemsize > 1:
        return "float"
    kinds = (tensor.is_quantized, tensor.is_complex(), tensor.is_floating_point(), tensor.dtype == torch.bool)
    return format_name(tensor.dtype) if any(kinds) else "integer"


def check_normalisation(network: nn.Module, outside: Mapping[str, Tensor], source: str | Path) -> str:
    """Compare normalisation that a file keeps outside the network with the network's own.

    Args:
        network: Loads the rest of the file.
        outside: Tensors by name that are not the network's.
        source: The file's name, for the error.

    Returns:
        A word on it for the user; empty if the file has none.

    Raises:
        ValueError: If the network normalises by other numbers.
    """
    theirs, ours = _normalisations(outside), _normalisations(network.state_dict())
    if not theirs:
        return ""
    if not ours:
        return (
            f"; the file normalises images outside the network, by {_told(theirs[0])}: the network must do it itself, "
            "with rampart.networks.Normalize as its first layer"
        )
    for numbers in theirs:
        if not any(a.shape == numbers.shape and torch.allclose(a, numbers, atol=1e-4) for a in ours):
            raise ValueError(
                f"{source} was trained with images normalised by {_told(numbers)}, and {type_name(network)} "
                f"normalises by {_told(ours[0])}: build it with the file's"
            )
    return "; the file's normalisation is the network's"


def _normalisations(tensors: Mapping[str, Any]) -> list[Tensor]:
    """Return mean and standard deviation per channel, ``(2, C)``, of each normalisation."""
    pairs = [[tensors[name] for name in pair] for pair in normalisers(tensors)]
    return [
        torch.stack([tensor.detach().float().cpu().flatten() for tensor in pair])
        for pair in pairs
        if pair[0].numel() == pair[1].numel() <= _MOST_CHANNELS
    ]


def _told(numbers: Tensor) -> str:
    mean, std = ([round(value, 4) for value in row] for row in numbers.tolist())
    return f"mean {mean} and std {std}"


def refuse(network: nn.Module, problems: list[str], source: str | Path) -> None:
    """Raise the problems of weights that do not fit, if there are any, in one line."""
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise ValueError(f"{source} does not fit {type_name(network)}: {'; '.join(problems)}")


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Join the first few names."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def type_name(network: nn.Module) -> str:
    """Return the name of a network's class."""
    return type(getattr(network, "_orig_mod", network)).__name__


def format_name(dtype: torch.dtype | torch.layout) -> str:
    """Return a number format's name."""
    return str(dtype).removeprefix("torch.")


def shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text."""
    return str(tuple(tensor.shape))
