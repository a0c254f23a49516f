"""Memory format: the order in which the numbers of images, activations and weights are held in memory."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rampart.kernels.execution import MemoryFormat

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lay_out_network(
    network: nn.Module, memory_format: MemoryFormat | None, device_type: str
) -> torch.memory_format | None:
    """Hold the weights of a network's 2D convolutions in a memory format, in place.

    Parameters stay the same objects with the same values, so state_dict, optimizers and hooks see no difference.

    Args:
        network: Any network.
        memory_format: The format. None: ``channels_last`` on an accelerator; unchanged on a CPU.
        device_type: Type of the device on which the network will be executed.

    Returns:
        The format for the network's images; None if they and the network are unchanged: by default on a CPU,
        and always without 2D convolutions.
    """
    chosen = memory_format or (None if device_type == "cpu" else "channels_last")
    convolutions = [module for module in network.modules() if isinstance(module, _CONVOLUTIONS)]
    if chosen is None or not convolutions:
        return None
    for convolution in convolutions:
        for parameter in convolution.parameters():  # Weights of pruned and of parametrised layers have other names.
            if not nn.parameter.is_lazy(parameter):
                parameter.data = lay_out(parameter.data, _FORMATS[chosen])
    return _FORMATS[chosen]


def lay_out(tensor: Tensor, memory_format: torch.memory_format | None) -> Tensor:
    """Return a tensor of the same values in a memory format.

    Strides are exact also in dimensions of size 1, such as the channel of gray images and of their convolution's
    weight. ``Tensor.contiguous`` leaves those unchanged, and a convolution that infers the format from strides then
    chooses torch's default format.

    Args:
        tensor: Images or weights ``(N, C, H, W)``; others are returned unchanged.
        memory_format: The format; None returns the tensor unchanged.

    Returns:
        The tensor itself or a view of it where possible, else a copy.
    """
    if memory_format is None or tensor.ndim != 4:
        return tensor
    strides = torch.empty(tensor.shape, device="meta", memory_format=memory_format).stride()
    if tensor.stride() == strides:
        return tensor
    return tensor.contiguous(memory_format=memory_format).as_strided(tensor.shape, strides)


def lay_out_state(optimizer: Optimizer) -> None:
    """Hold an optimizer's state in its parameters' memory format, as fused optimizers require.

    A state that was loaded from a checkpoint has the format in which the checkpoint's run held its parameters.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
