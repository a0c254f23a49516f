"""Tensors outside the network, in an objective or an attack, such as the class weights of a loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

KEY = "extra_tensors"
"""Name of the module's attribute, and so the prefix of these tensors in a checkpoint."""

OLD_KEY = "held."
"""Prefix of these tensors in checkpoints of earlier versions."""


def register_tensors(owner: nn.Module, **holders: object) -> nn.ModuleDict:
    """Collect the modules and tensors in objectives and attacks, to be moved and saved with the LightningModule.

    The objects keep the same modules and tensors. Parameters are frozen, since only the network is trained.

    Args:
        owner: LightningModule that will hold the result; its existing submodules, such as the network, are left out.
        holders: Objects by name, such as an objective; their attributes and items are searched.

    Returns:
        The modules found, and one module for each tensor outside a module, by name: ``objective/loss``.
    """
    known = {id(module) for module in owner.modules()}
    found = _find_parts(holders, "", known)
    modules = {path: part if isinstance(part, nn.Module) else _TensorHolder(part) for path, part in found}
    return nn.ModuleDict(modules).requires_grad_(False)


def match_extra_tensors(checkpoint: dict[str, Any], own: Mapping[str, Tensor]) -> None:
    """Match a checkpoint's extra tensors to the module's, and rename those that an earlier version wrote.

    Extra tensors that the module lacks are removed. Extra tensors that the checkpoint lacks, or has in another shape,
    are replaced by the module's.

    Args:
        checkpoint: Checkpoint whose ``state_dict`` is replaced.
        own: The module's ``state_dict``.
    """
    state = checkpoint["state_dict"] = {
        f"{KEY}.{name.removeprefix(OLD_KEY)}" if name.startswith(OLD_KEY) else name: tensor
        for name, tensor in checkpoint["state_dict"].items()
    }
    for name in [name for name in state if name.startswith(f"{KEY}.") and name not in own]:
        del state[name]
    for name, tensor in own.items():
        if name.startswith(f"{KEY}.") and getattr(state.get(name), "shape", None) != tensor.shape:
            state[name] = tensor


class _TensorHolder(nn.Module):
    """Module with a tensor that stays the same object when it is moved, so that an attack's loss sees it moved."""

    value: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_TensorHolder":
        tensor = self.value
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensor.data = self.value.data
        self.value = tensor
        return self


def _find_parts(value: Any, path: str, known: set[int]) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Yield the modules and tensors in an object, by path; objects whose id is known are left out."""
    if id(value) in known or isinstance(value, (str, bytes, int, float, type, FunctionType, ModuleType, type(None))):
        return
    known.add(id(value))
    if isinstance(value, (nn.Module, Tensor)):
        yield path, value
        return
    inside: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inside = value
    elif isinstance(value, Sequence):
        inside = dict(enumerate(value))
    elif isinstance(value, partial):
        inside = {**dict(enumerate(value.args)), **value.keywords}
    elif hasattr(value, "__dict__"):
        inside = vars(value)
    for name, part in inside.items():
        # torch allows no dots in a module's name.
        yield from _find_parts(part, f"{path}/{name}".lstrip("/").replace(".", "_"), known)
