"""A pickle reader that builds tensors and plain containers, and executes nothing that a file names.

``torch.load`` with ``weights_only=True`` refuses a whole file because of one ``argparse.Namespace`` beside the weights.
Given to ``torch.load`` as its ``pickle_module``, this module reads such files: every object of a class that it does not
know becomes an :class:`Unbuilt`, a dictionary of what the object held. No class or function is imported. A file that
asks for the call of a function is refused, except of those that only ever build values.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import torch

_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's, which pickle protocol 2 writes
# Calls of these build values; they stay uncalled like all others, but a file may ask for them.
_VALUES = {"_codecs", "argparse", "collections", "copyreg", "datetime", "decimal", "dill", "enum", "fractions",
           "functools", "numpy", "omegaconf", "pathlib", "torch", "typing", "uuid"}  # fmt: skip


class CallRefused(pickle.UnpicklingError):
    """A file asks for the call of a function."""


class Unbuilt(dict[Any, Any]):
    """An object of a file that was not built: its attributes and its items, by name."""

    origin = ""
    dump_patches = False  # torch.load asks classes of old files

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "Unbuilt":
        """Hold nothing yet: pickle sets attributes and items afterwards."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        # Pickle comes here where it calls what it found, not where it restores an object of a class.
        if self.origin.split(".")[0] not in _VALUES and self.origin not in ("builtins.object", "builtins.complex"):
            raise CallRefused(self.origin)

    def __call__(self, *_args: Any, **_kwargs: Any) -> "Unbuilt":
        """Stay unbuilt."""
        return Unbuilt.__new__(Unbuilt)

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # of a class with slots: two dictionaries
        for part in parts:
            if isinstance(part, dict):
                self.update(part)

    def append(self, item: Any) -> None:
        """Keep an item of a list of a class of its own."""
        self[len(self)] = item

    def extend(self, items: Any) -> None:
        """Keep the items of a list of a class of its own."""
        for item in items:
            self.append(item)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _from_bytes(data: Any) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # what pickle.dump makes of a tensor


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.storage._load_from_bytes": _from_bytes,
    "torch.jit._pickle.restore_type_tag": _first,
}
_TYPES: dict[str, type] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}


class Unpickler(pickle._Unpickler):
    """Pickle's, with nothing to find but what builds tensors and plain containers.

    Pickle's own Python form: the one in C sets up as much memory for its memo as a file of a few bytes tells it to.
    """

    # No state_dict has a bytearray, for which a file of a few bytes could have any amount of memory set to zero.
    dispatch: ClassVar[dict[int, Any]] = {
        code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a builder or a class of unbuilt objects; nothing is imported."""
        name = f"{_OLD_NAMES.get(module_name, module_name)}.{global_name}"
        if name in _TYPES:
            return _TYPES[name]
        if name in _BUILDERS or name.startswith("torch.jit._pickle.build_"):
            builder: Callable[..., Any] = _BUILDERS.get(name, _first)
            # A function made here, as a file may set attributes of what it gets.
            return lambda *arguments: builder(*arguments)
        return type("Unbuilt", (Unbuilt,), {"origin": name})


def load(file: IO[bytes], **options: Any) -> Any:
    """Read one pickle."""
    return Unpickler(file, **options).load()
