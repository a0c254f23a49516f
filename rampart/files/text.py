"""Names, shapes and dtypes as text for messages of one line."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAMES_SHOWN = 6
LONGEST_KEY = 200


def join_names(names: Sequence[str]) -> str:
    """Join the first six names with commas, and add the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def printable_key(key: Any) -> str:
    """Return a key of a file as printable text for one line of a terminal."""
    text = str(key) if isinstance(key, str | int) else type(key).__name__
    text = "".join(character if character.isprintable() else "?" for character in text[: LONGEST_KEY + 1])
    return text if len(text) <= LONGEST_KEY else f"{text[:LONGEST_KEY]}..."


def type_name(network: nn.Module) -> str:
    """Return the name of a network's class; for a compiled network, that of the network inside."""
    return type(getattr(network, "_orig_mod", network)).__name__


def dtype_name(dtype: torch.dtype | torch.layout) -> str:
    """Return the name of a dtype or layout, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def format_shape(tensor: Tensor) -> str:
    """Return a tensor's shape, such as ``(10, 3)``."""
    return str(tuple(tensor.shape))
