"""Dependencies of a recording besides its inputs: addresses of weights, modes, attributes and torch's settings."""

from collections.abc import Hashable, Sequence
from typing import Any

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
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            return f"{type(module).__name__} distributes it"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"its layer {type(module).__name__} has hooks"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "there are global forward hooks"
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return "there are global backward hooks"
    return None


def locate_weights(modules: Sequence[nn.Module]) -> tuple[object, ...]:
    """Return what changes if a recording of these modules would no longer compute what they compute.

    These are the addresses of parameters and buffers, and the attributes of modules, except those that torch defines:
    their settings do not change after construction.
    """
    addresses = [
        tensor.data_ptr()
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
    attributes = [
        (name, _describe(value))
        for module in modules
        if not type(module).__module__.startswith("torch.nn.")
        for name, value in vars(module).items()
        if name not in _OF_ALL_MODULES
    ]
    return *addresses, *attributes


def _describe(value: Any) -> object:
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return type(value), *(_describe(item) for item in value)
    if isinstance(value, dict):
        return tuple((_describe(key), _describe(item)) for key, item in value.items())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value), value
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
