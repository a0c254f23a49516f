"""Hash of the code that decides the result of an evaluation."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rampart.attacks import Attack

HERE = Path(__file__).resolve().parent
_EVALUATION_MODULES = ("clean_pass", "image_source", "network_checks", "run_attack", "worst_case")
_LIBRARIES = {*sys.stdlib_module_names, "torch"}  # packages whose code the hash leaves out


def hash_code(attacks: Sequence[Attack]) -> str:
    """Return the SHA-256 of the code that decides which images are fooled, as part of the cache's key.

    It covers Rampart's own files, the files of custom attacks' classes, and those of the functions and attacks among
    their settings.

    Args:
        attacks: The attacks of the search.
    """
    files = rampart_files()
    modules = {sys.modules.get(name) for name in _modules(list(attacks)) if name.split(".")[0] not in _LIBRARIES}
    custom = {Path(file).resolve() for module in modules if (file := getattr(module, "__file__", None))}
    unseen = sorted(file for file in custom.difference(files) if file.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*files, *unseen])).hexdigest()


def hash_bounds(network: nn.Module, settings: Sequence[object]) -> str:
    """Return the SHA-256 of what decides which images are certified, besides the key of the search.

    It covers the network's layers, and the code of bounds and networks.

    Args:
        network: The bounded network.
        settings: Settings of the certification.
    """
    files = [*rampart_files(), *sorted((HERE.parent / "bounds").glob("*.py")), HERE / "certification.py"]
    code = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(f"{network!r} {settings!r}".encode() + code).hexdigest()


def rampart_files() -> list[Path]:
    """Return Rampart's own files that decide which images are fooled, sorted."""
    packages = ("attacks", "networks", "kernels")
    files = (file for package in packages for file in (HERE.parent / package).glob("*.py"))
    return sorted([*files, *(HERE / f"{name}.py" for name in _EVALUATION_MODULES)])


def _modules(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _modules(item)
    elif isinstance(value, Attack):
        yield from (kind.__module__ for kind in type(value).__mro__)
        yield from _modules(list(getattr(value, "__dict__", {}).values()))
    elif callable(value):
        yield getattr(value, "__module__", None) or type(value).__module__
