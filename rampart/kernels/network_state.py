"""Dependencies of a recording besides its inputs: addresses of weights, modes, attributes and torch's settings."""

from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from rampart.kernels.precision import autocast_dtype, float32_precisions

_OF_ALL_MODULES = frozenset(nn.Module().__dict__)


def list_modules(network: nn.Module) -> list[nn.Module]:
    """Return a network and all its parts. ``modules()`` lists the same, at more than twice the time."""
    found, left = {id(network): network}, [network]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


def find_obstacle(modules: Sequence[nn.Module]) -> str | None:
    """Return the reason why a network of these modules must be called and can't be recorded; None if there is none."""
    for module in modules:
        if isinstance(module, (DataParallel, DistributedDataParallel, torch.jit.ScriptModule)):
            scripted = isinstance(module, torch.jit.ScriptModule)
            return f"{type(module).__name__} {'hides its attributes' if scripted else 'distributes it'}"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"its layer {type(module).__name__} has hooks"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "there are global forward hooks"
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return "there are global backward hooks"
    return None


def list_weights(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module, without those of its parts."""
    return [
        tensor for tensors in (module._parameters, module._buffers) for tensor in tensors.values() if tensor is not None
    ]


def locate_weights(modules: Sequence[nn.Module]) -> tuple[object, ...]:
    """Return what changes if a recording of these modules would no longer compute what they compute.

    These are the addresses of parameters and buffers, and the attributes of modules; of those that torch defines, only
    the numbers, such as a slope.
    """
    addresses = [tensor.data_ptr() for module in modules for tensor in list_weights(module)]
    attributes: list[object] = []
    for module in modules:
        if type(module).__module__.startswith("torch.nn."):
            attributes += [value for value in vars(module).values() if type(value) in _NUMBERS]
        else:
            named = vars(module).items()
            attributes += [(name, _describe(value)) for name, value in named if name not in _OF_ALL_MODULES]
    return *addresses, *attributes


_NUMBERS = frozenset([int, float])  # Modes, which are bool, are described by `describe_modes`.


def _describe(value: Any) -> object:
    if isinstance(value, Tensor):
        # A kernel gets the value that a number on the host has when it is launched.
        changes = value._version if value.device.type == "cpu" and not value.is_inference() else 0
        return value.data_ptr(), value.shape, value.dtype, changes
    if isinstance(value, (tuple, list)):
        return type(value), *(_describe(item) for item in value)
    if isinstance(value, (dict, SimpleNamespace)):
        items = value if isinstance(value, dict) else vars(value)
        return tuple((_describe(key), _describe(item)) for key, item in items.items())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value), value
    try:
        return type(value), id(value), ref(value)  # Another object may have the address of one that is gone.
    except TypeError:
        return type(value), id(value)


def describe_modes(modules: Sequence[nn.Module]) -> Hashable:
    """Return the indices of the modules in train mode, with BatchNorm's ``track_running_stats``."""
    return tuple(
        (index, isinstance(module, _BatchNorm) and module.track_running_stats)
        for index, module in enumerate(modules)
        if module.training
    )


def describe_settings(device_type: str) -> Hashable:
    """Return torch's settings that decide which operations compute a network."""
    return (
        autocast_dtype(device_type),
        float32_precisions(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
