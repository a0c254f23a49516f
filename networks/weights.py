"""Weights from files: read without executing anything, and matched against a network by name and shape."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LIGHTNING_KEY = "pytorch-lightning_version"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors: a Lightning checkpoint, a plain state_dict or safetensors.

    Args:
        path: The file; a name that ends in ``.safetensors`` is read as that, any other by ``torch.load``
            with ``weights_only=True``, which builds tensors and plain containers and nothing else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is no checkpoint, or holds objects whose loading would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    allowed = "allowed: a Lightning checkpoint, a state_dict (.pth) or .safetensors"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Arbitrary bytes raise whatever they meet first.
        if "unsupported global" in str(error).lower():
            problem = "holds objects whose loading would execute code: refused, nothing was executed"
        else:
            problem = "is damaged or truncated, or not a checkpoint: refused, nothing in it was executed"
        raise ValueError(f"{path} {problem}; {allowed}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; {allowed}")
    return checkpoint


def network_weights(checkpoint: Mapping[str, Any], source: str | Path = "checkpoint") -> dict[str, Tensor]:
    """Pick a network's state_dict out of what :func:`read_checkpoint` returned.

    Args:
        checkpoint: The file's content.
        source: Its name, for the error.

    Returns:
        Tensors by parameter name; of a Lightning checkpoint those of the module's ``network``.

    Raises:
        ValueError: If no tensors are found.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        state = {}
    if LIGHTNING_KEY in checkpoint:
        own = "network."
        state = {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(state):
        raise ValueError(
            f"{source} holds no network's weights: expected tensors by parameter name, "
            f"got the keys {', '.join(map(str, list(checkpoint)[:5]))}"
        )
    return weights


def _unwrapped(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Take off prefixes that wrappers put before all names, where the network does not have them."""
    own = network.state_dict().keys()
    for prefix in ("network.", "module.", "_orig_mod."):
        if not own & weights.keys() and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def check_match(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path = "checkpoint") -> None:
    """Refuse weights that are not this network's, tensor by tensor.

    Raises:
        ValueError: If names or shapes differ; the message names the tensors and both shapes.
    """
    expected = network.state_dict()
    problems = [
        f"{name} is {_shape(weights[name])} in the file and {_shape(tensor)} in the network"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [f"{n} {_shape(t)} is missing in the file" for n, t in expected.items() if n not in weights]
    problems += [f"{n} {_shape(t)} is unknown to the network" for n, t in weights.items() if n not in expected]
    if len(problems) > 12:
        problems = [*problems[:12], f"and {len(problems) - 12} more"]
    if problems:
        raise ValueError(f"{source} does not fit {type(network).__name__}: {'; '.join(problems)}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def load_weights(network: nn.Module, path: str | Path) -> str:
    """Load a file's weights into a network, all or none.

    Args:
        network: Takes the weights; its parameters keep their dtype and device.
        path: See :func:`read_checkpoint`. Prefixes of all names that come from a wrapper (``network.``,
            ``module.`` of DataParallel, ``_orig_mod.`` of torch.compile) are taken off.

    Returns:
        One line that says what was loaded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be read safely or doesn't fit the network.
    """
    checkpoint = read_checkpoint(path)
    weights = _unwrapped(network_weights(checkpoint, path), network)
    check_match(network, weights, path)
    network.load_state_dict(weights)
    origin = "plain weights"
    if LIGHTNING_KEY in checkpoint:
        epoch, step = checkpoint.get("epoch", "?"), checkpoint.get("global_step", "?")
        origin = f"a checkpoint after epoch {epoch} (zero-based), step {step}"
    numbers = sum(tensor.numel() for tensor in weights.values())
    return f"Loaded {len(weights)} tensors ({numbers:,} numbers) into {type(network).__name__} from {path}, {origin}"
