"""Hash of the code that decides a search's result."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rampart.attacks import Attack


def hash_code(attacks: Sequence[Attack]) -> str:
    """Return the SHA-256 of the code that a fooled image depends on, so that no result outlives the attack's code.

    Args:
        attacks: The files of their classes count, and of functions and other attacks among their settings.
    """
    here = Path(__file__).resolve().parent
    root, own = here.parent, (here / "worst_case.py", here / "run_attack.py")
    files = [*root.glob("attacks/*.py"), *root.glob("networks/*.py"), *root.glob("kernels/*.py"), *own]
    modules = {sys.modules.get(name) for name in _modules(list(attacks)) if name.split(".")[0] not in _FIXED}
    custom = {Path(file).resolve() for module in modules if (file := getattr(module, "__file__", None))}
    unseen = sorted(file for file in custom.difference(files) if file.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*sorted(files), *unseen])).hexdigest()


_FIXED = {*sys.stdlib_module_names, "torch"}


def _modules(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _modules(item)
    elif isinstance(value, Attack):
        yield from (kind.__module__ for kind in type(value).__mro__)
        yield from _modules(list(getattr(value, "__dict__", {}).values()))
    elif callable(value):
        yield getattr(value, "__module__", None) or type(value).__module__
