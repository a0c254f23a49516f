"""A pickle reader that builds tensors and plain containers only, and never executes code named in a file.

``torch.load`` with ``weights_only=True`` refuses a whole file if it holds one ``argparse.Namespace`` besides the
weights. This module reads such files when ``torch.load`` gets it as ``pickle_module``: each object of an unknown class
becomes an :class:`Unbuilt`, a dictionary of the object's attributes and items. No class or function is imported. A
file that calls a function is refused, unless the function only builds values.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import torch

_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names, which pickle protocol 2 writes
# Functions of these packages only build values. They are not called either, but a file with such a call is read.
_VALUE_PACKAGES = {"_codecs", "argparse", "collections", "copyreg", "cox", "datetime", "decimal", "dill", "enum",
           "fractions", "functools", "logging", "numpy", "omegaconf", "operator", "pathlib", "random", "re",
           "robustness", "torch", "torchvision", "types", "typing", "uuid"}  # fmt: skip
_VALUE_BUILTINS = {"complex", "getattr", "object", "range", "reduce", "setattr", "slice", "type", "xrange"}


class CallRefused(pickle.UnpicklingError):
    """Raised for a file that calls a function."""


class Unbuilt(dict[Any, Any]):
    """Object of a file that was not built: a dictionary of its attributes and items."""

    origin = ""
    dump_patches = False  # torch.load reads it from the classes in old files

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "Unbuilt":
        """Create an empty object: pickle sets attributes and items afterwards."""
        # The class is no type where the file describes it, as dill does with classes of a script.
        return dict.__new__(cls if isinstance(cls, type) else Unbuilt)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        # Pickle calls this where the file calls a class or function, not where it restores an object.
        package, _, name = self.origin.partition(".")
        if package not in _VALUE_PACKAGES and not (package == "builtins" and name in _VALUE_BUILTINS):
            raise CallRefused(self.origin)

    def __call__(self, *_args: Any, **_kwargs: Any) -> "Unbuilt":
        """Return another empty object instead of calling anything."""
        return Unbuilt.__new__(Unbuilt)

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)  # a class with slots has two dictionaries
        for part in parts:
            if isinstance(part, dict):
                self.update(part)

    def append(self, item: Any) -> None:
        """Keep an item of a custom list class."""
        self[len(self)] = item

    def extend(self, items: Any) -> None:
        """Keep the items of a custom list class."""
        for item in items:
            self.append(item)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _from_bytes(data: Any) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # as pickle.dump writes a tensor


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
    """Pickle's unpickler, which finds only builders of tensors and plain containers.

    It derives from pickle's Python implementation: the C one lets a file of a few bytes allocate any amount of memory
    for its memo.
    """

    # No state_dict has a bytearray, with which a file of a few bytes could allocate any amount of memory.
    dispatch: ClassVar[dict[int, Any]] = {
        code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a builder or a class of unbuilt objects; nothing is imported."""
        name = f"{_PYTHON_2_NAMES.get(module_name, module_name)}.{global_name}"
        if name in _TYPES:
            return _TYPES[name]
        if name in _BUILDERS or name.startswith("torch.jit._pickle.build_"):
            builder: Callable[..., Any] = _BUILDERS.get(name, _first)
            # A new function, because a file may set attributes of it.
            return lambda *arguments: builder(*arguments)
        return type("Unbuilt", (Unbuilt,), {"origin": name})


def load(file: IO[bytes], **options: Any) -> Any:
    """Read one pickle."""
    return Unpickler(file, **options).load()
