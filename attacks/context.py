"""The surroundings that an attack runs in: what it needs switched, and everything put back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model: TypeAlias = Callable[[Tensor], Tensor]
BatchNormMode: TypeAlias = Literal["eval", "train", "train_and_update"]


@contextmanager
def attack_context(model: Model, batchnorm: BatchNormMode, device_type: str) -> Iterator[None]:
    """Run an attack on ``model`` and leave no trace in it, also after an exception.

    Inside, gradients are on (also when called under ``no_grad`` or ``inference_mode``), the model is in
    eval mode and its parameters are frozen. Afterwards every submodule's ``training`` flag, every buffer and
    every ``requires_grad`` is as it was. Tensors that come from inference mode must be cloned inside. Float16
    autocast is off inside: there, small gradients vanish and the attack with them; bfloat16 stays on.

    Args:
        model: A network, or any function of a batch of images.
        batchnorm: ``"eval"`` normalises by running statistics. ``"train"`` normalises by batch statistics and
            puts the running ones back. ``"train_and_update"`` lets them move at every forward pass, as the
            paper's CIFAR-10 code does: the one trace that can stay, and only on request.
        device_type: Where the images are, such as ``"cpu"``.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if isinstance(model, nn.Module):
            keep_buffers = batchnorm != "train_and_update"
            stack.enter_context(_untouched(model, keep_buffers))
            for module in model.modules():
                module.training = batchnorm != "eval" and isinstance(module, _BatchNorm)
            for parameter in model.parameters():
                if parameter.is_leaf:
                    parameter.requires_grad_(False)
        yield


@contextmanager
def _untouched(model: nn.Module, keep_buffers: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters() if parameter.is_leaf]
    buffers = [
        (module, name, buffer, buffer.clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and keep_buffers
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        for module, name, buffer, value, version in buffers:
            module._buffers[name] = buffer
            # Writing to a buffer that did not change would break a graph that saved it for its backward.
            if _version(buffer) != version:
                with torch.no_grad():
                    buffer.copy_(value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
