"""Robust image classifiers with torch alone: attacks, networks, objectives, bounds and evaluation.

Import ``rampart`` and use its subpackages by name, as in ``rampart.attacks.PGD``; each is imported when first used.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rampart import attacks, bounds, collapse, data, evaluation, files, kernels, networks, objectives, schedules

__all__ = [
    "attacks",
    "bounds",
    "collapse",
    "data",
    "evaluation",
    "files",
    "kernels",
    "networks",
    "objectives",
    "schedules",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"rampart.{name}")
    raise AttributeError(f"module 'rampart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
