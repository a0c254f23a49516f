"""Context manager for attacks: sets the model's modes and torch's gradient modes, and restores them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels import DerivedWeights, current_execution, frozen_weights
from rampart.kernels.network_state import list_modules
from rampart.kernels.precision import autocast_dtype

Model: TypeAlias = Callable[[Tensor], Tensor]
"""A network, or any function of a batch of images ``(N, ...)`` that returns logits ``(N, C)``."""

BatchNormMode: TypeAlias = Literal["eval", "train", "train_and_update"]


@contextmanager
def attack_context(model: Model, batchnorm: BatchNormMode, device_type: str) -> Iterator[None]:
    """Prepare a model for an attack, and restore it afterwards, even after an exception.

    Inside, gradients are enabled (also under ``no_grad`` or ``inference_mode``), the model is in eval mode and its
    parameters are frozen. Afterwards, every submodule's ``training`` flag and every parameter's ``requires_grad`` has
    its earlier value. BatchNorm's buffers do not change. Tensors created in inference mode must be cloned inside.
    Float16 autocast is disabled inside, since it rounds small gradients to zero, which stops the attack; bfloat16
    autocast stays enabled.

    Args:
        model: A network, or any function of a batch of images.
        batchnorm: ``"eval"`` normalises by running statistics. ``"train"`` normalises by batch statistics and keeps
            the running ones. ``"train_and_update"`` also updates the running ones at every forward pass, as the
            paper's CIFAR-10 code does, if the model is in train mode; it is the only lasting change to a model. A
            BatchNorm layer in eval mode inside a model in train mode is frozen, and normalises by running statistics.
        device_type: Device of the images, such as ``"cpu"``.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if autocast_dtype(device_type) == torch.float16:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(current_execution().attack(device_type))
        stack.enter_context(frozen_weights(DerivedWeights()))
        if isinstance(model, nn.Module):
            stack.enter_context(_changed_flags(model, batchnorm))
        yield


@contextmanager
def _changed_flags(model: nn.Module, batchnorm: BatchNormMode) -> Iterator[None]:
    """Set the modes of all parts of a model for an attack and freeze its parameters; restore both afterwards."""
    modules = list_modules(model)
    modes = [(module, module.training) for module in modules]
    tracking = [(module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)]
    leaves = [leaf for module in modules for leaf in module._parameters.values() if leaf is not None and leaf.is_leaf]
    flags = [(leaf, leaf.requires_grad) for leaf in leaves]
    training = model.training
    try:
        for module, mode in modes:
            frozen = training and not mode
            if batchnorm != "eval" and isinstance(module, _BatchNorm) and not frozen:
                module.training = True
                # In train mode, False means: normalise by batch statistics, keep the running ones.
                module.track_running_stats &= training and batchnorm == "train_and_update"
            else:
                _set_mode(module, False)
        for leaf in leaves:
            leaf.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            _set_mode(module, mode)
        for layer, track_running_stats in tracking:
            layer.track_running_stats = track_running_stats
        for leaf, requires_grad in flags:
            leaf.requires_grad_(requires_grad)


def _set_mode(module: nn.Module, training: bool) -> None:
    """Set ``module.training``; directly where possible, because torch's assignment first looks for a parameter."""
    if type(module).__setattr__ is nn.Module.__setattr__ and "training" in module.__dict__:
        module.__dict__["training"] = training
    else:  # such as a scripted module, which keeps its mode elsewhere
        module.training = training
