"""Tensors that an objective or an attack holds, such as the class weights of a loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

KEY = "extra_tensors"
"""Name of the held tensors' module, and so the beginning of their names in a checkpoint."""

OLD_KEY = "held."
"""Prefix of these tensors in checkpoints of earlier versions."""


def register_tensors(owner: nn.Module, **holders: object) -> nn.ModuleDict:
    """Collect what the holders hold as parts of one module: it moves with its parent and is saved with it.

    The holders keep the very same objects. Only the network is trained: the parameters found are frozen.

    Args:
        owner: The module that is to have them as a part; what is a part of it already, as its network, is left out.
        holders: Objects by name, such as an objective; they are searched for modules and tensors.
    """
    known = {id(module) for module in owner.modules()}
    found = {path: part if isinstance(part, nn.Module) else _Loose(part) for path, part in _parts(holders, "", known)}
    return nn.ModuleDict(found).requires_grad_(False)


def match_extra_tensors(checkpoint: dict[str, Any], own: Mapping[str, Tensor]) -> None:
    """Let a checkpoint whose holders are others, or of an earlier version, fit a module: its own tensors fill the gaps.

    Args:
        checkpoint: Its ``state_dict`` is changed.
        own: The module's.
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


class _Loose(nn.Module):
    """A tensor outside any module; its holder sees it move, because it stays the same object."""

    value: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Loose":
        tensor = self.value
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensor.data = self.value.data
        self.value = tensor
        return self


def _parts(value: Any, path: str, known: set[int]) -> Iterator[tuple[str, nn.Module | Tensor]]:
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
        # A module's name must have no dots.
        yield from _parts(part, f"{path}/{name}".lstrip("/").replace(".", "_"), known)
