"""Settings of a module as plain values in a checkpoint, and the objects built from them.

A checkpoint can't make the program import or run other code: a class must belong to Rampart or torch, or be imported by
the program already, and it must be a network, attack, objective, optimizer or schedule.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rampart.attacks import Attack, NamedAttack, Start
from rampart.files.old_names import update_settings
from rampart.objectives import Objective

PACKAGES = ("rampart", "lightning_modules", "torch.nn", "torch.optim", "pytorch_lightning.cli")
KINDS = (nn.Module, Attack, NamedAttack, Start, Objective, Optimizer, LRScheduler)


class NotPlainError(ValueError):
    """Raised for an object that plain values can't describe; the message names its class."""


def describe(value: Any) -> Any:
    """Return plain values from which :func:`build` builds an equal object.

    Raises:
        NotPlainError: If the arguments of the object can't be determined.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, partial):
        # The class is the last argument of the factories that jsonargparse makes, and the function of others.
        made = next((part for part in reversed(value.args) if isinstance(part, type)), value.func)
        return {"factory": _import_path(made), "init_args": _describe_values(value.keywords)}
    if isinstance(value, (type, FunctionType)):
        return {"factory": _import_path(value), "init_args": {}}
    if is_dataclass(value):
        given = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return {"class_path": _import_path(type(value)), "init_args": _describe_values(given)}
    if isinstance(value, nn.Module):
        return _describe_module(value)
    raise NotPlainError(type(value).__name__)


def build(value: Any) -> Any:
    """Build the object that plain values describe.

    Raises:
        ValueError: If a class is not allowed, not imported or does not accept the arguments.
    """
    if isinstance(value, (list, tuple)):
        return tuple(build(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return torch.tensor(value["tensor"])
    path = value.get("factory", value.get("class_path"))
    if path is None:
        return {name: build(item) for name, item in value.items()}
    arguments = {str(name): build(item) for name, item in (value.get("init_args") or {}).items()}
    made = resolve(str(path))
    if "factory" in value:
        return partial(made, **arguments) if arguments else made
    if not isinstance(made, type):
        raise ValueError(f"the checkpoint names {path} as a class, which it is not")
    try:
        return made(*build(value.get("args", ())), **arguments)
    except Exception as error:
        raise ValueError(f"the checkpoint's {path} can't be built: {error}") from error


def resolve(path: str) -> Any:
    """Return the class or function that an import path in a checkpoint names; functions must be Rampart's or torch's.

    Raises:
        ValueError: If the class is of another kind, or in a package that the program has not imported.
    """
    module_name, _, name = path.rpartition(".")
    own = any(f"{module_name}.".startswith(f"{package}.") for package in PACKAGES)
    try:
        module = importlib.import_module(module_name) if own else sys.modules[module_name]
        found = getattr(module, name)
    except (ImportError, KeyError, AttributeError, ValueError):
        raise ValueError(
            f"the checkpoint names {path}, which this program has not imported, and a file can't cause imports: import "
            "it before, or pass the object"
        ) from None
    allowed = isinstance(found, type) and issubclass(found, KINDS)
    if own and isinstance(found, FunctionType):
        allowed = any(f"{found.__module__}.".startswith(f"{package}.") for package in PACKAGES)
    if not allowed:
        raise ValueError(
            f"the checkpoint names {path}, which is not a network, attack, objective, optimizer or schedule"
        )
    return found


def _describe_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: describe(value) for name, value in values.items()}


def _import_path(value: Any) -> str:
    path = f"{value.__module__}.{value.__qualname__}"
    if "<" in path or "." in value.__qualname__:
        raise NotPlainError(path)
    return path


def _describe_module(module: nn.Module) -> dict[str, Any]:
    """Describe a module that has no arguments, stores them in ``init_args``, or is a class of torch."""
    kind = type(module)
    path = _import_path(kind)
    if type(module) is nn.Sequential and list(module._modules) == [str(i) for i in range(len(module))]:
        return {"class_path": path, "args": [describe(child) for child in module]}
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    if not parameters:
        return {"class_path": path, "init_args": {}}
    kept = getattr(module, "init_args", None)
    if isinstance(kept, dict) and set(kept) == {parameter.name for parameter in parameters}:
        return {"class_path": path, "init_args": _describe_values(kept)}
    if not kind.__module__.startswith("torch.nn."):
        raise NotPlainError(path)
    given: dict[str, Any] = {}
    for parameter in parameters:
        if hasattr(module, parameter.name):
            value = getattr(module, parameter.name)
            given[parameter.name] = value is not None if parameter.name == "bias" else value
    described = {"class_path": path, "init_args": _describe_values(given)}
    with torch.device("meta"):
        same = repr(build(described)) == repr(module)
    if not same:
        raise NotPlainError(path)
    return described


def describe_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a module as plain values; ``{"unknown": CLASS}`` for an object that has no description."""
    settings: dict[str, Any] = {}
    for name, value in given.items():
        try:
            settings[name] = describe(value)
        except NotPlainError as error:
            settings[name] = {"unknown": str(error)}
    return settings


def build_arguments(settings: Mapping[str, Any], given: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Build the arguments that a checkpoint's settings describe.

    Args:
        settings: Descriptions by argument name.
        given: Arguments that replace the checkpoint's.
        path: Path of the checkpoint, for messages.

    Raises:
        ValueError: If an argument is neither given nor described.
    """
    arguments = dict(given)
    for name, value in settings.items():
        if name in given:
            continue
        if not (isinstance(value, Mapping) and "unknown" in value):
            try:
                arguments[name] = build(value)
            except ValueError as error:
                raise ValueError(f"{path}: {error}: load_from_checkpoint({str(path)!r}, {name}=...)") from error
        elif name in ("optimizer", "lr_scheduler"):
            rank_zero_warn(f"{path} does not describe the {name}: further training would use the default")
        else:
            raise ValueError(
                f"{path} does not describe the arguments of the {name}, {value['unknown']}: pass it, "
                f"load_from_checkpoint({str(path)!r}, {name}=...)"
            )
    return arguments


def build_module(
    module_class: type, checkpoint: Mapping[str, Any], given: Mapping[str, Any], path: object
) -> nn.Module:
    """Build the module that a checkpoint describes, without its weights.

    Args:
        module_class: Class to build, unless the checkpoint names an imported subclass of it.
        checkpoint: Content of the checkpoint.
        given: Arguments that replace the checkpoint's.
        path: Path of the checkpoint, for messages.

    Raises:
        ValueError: If an argument is neither given nor described by the checkpoint.
    """
    settings = checkpoint.get("hyper_parameters")
    if "state_dict" not in checkpoint or not (given or isinstance(settings, dict)):
        raise ValueError(
            f"{path} has no settings of a module, like checkpoints of earlier versions and weights files: "
            f"pass them, load_from_checkpoint({str(path)!r}, network=..., eps=...)"
        )
    settings = update_settings(settings, sys.modules.__contains__) if isinstance(settings, dict) else {}
    try:
        named = resolve(str(settings.pop("class_path", "")))
        module_class = named if issubclass(named, module_class) else module_class
    except ValueError:
        pass  # The class is not imported here; the caller asked for this one.
    accepted = inspect.signature(module_class).parameters
    arguments = build_arguments({name: value for name, value in settings.items() if name in accepted}, given, path)
    try:
        module = module_class(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}: pass it, load_from_checkpoint({str(path)!r}, ...)") from error
    assert isinstance(module, nn.Module)
    return module
