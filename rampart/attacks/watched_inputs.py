"""Watch of the batches that a training loss is computed on, to read the gradient of the loss at their images."""

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_CURRENT: ContextVar["InputWatch | None"] = ContextVar("watch", default=None)


class InputWatch:
    """Keep the batches whose logits are differentiated with respect to a network's weights.

    A hook of the network would do the same, but networks with hooks are not recorded as CUDA graphs, skip no layers,
    and count as different in train and eval mode. Losses are the same with and without a watch.

    Attributes:
        inputs: The batches since :meth:`start`, ``(N, ...)``. After the backward pass, ``grad`` of a batch is the
            gradient of the loss at it.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def start(self) -> None:
        """Keep batches from now on."""
        self.inputs = []
        _CURRENT.set(self)

    def stop(self) -> None:
        """Keep no more batches, and forget those that were kept."""
        self.inputs = []
        if _CURRENT.get() is self:
            _CURRENT.set(None)


def watch_input(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return a batch to compute logits of: the batch itself, or a copy of which a watch will read the gradient.

    An attack's batches are not watched: there the weights are frozen, or the batch has a gradient already.

    Args:
        model: A network, or any function.
        images: ``(N, ...)``.
    """
    watch = _CURRENT.get()
    if watch is None or images.requires_grad or not torch.is_grad_enabled() or not isinstance(model, nn.Module):
        return images
    if images.is_inference() or not any(weight.requires_grad for weight in model.parameters()):
        return images
    images = images.detach().requires_grad_()
    watch.inputs.append(images)
    return images
