"""What every white-box attack asks of a model: its answers, a loss for each image, and that loss's gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.context import Model
from attacks.outputs import logits_of


def loss_gradient(model: Model, adv: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Answer images and differentiate a loss of the answers with respect to each image.

    Args:
        model: Maps images to logits ``(N, C)``.
        adv: ``(N, ...)``, without a graph.
        loss: Maps logits to ``(N,)``; each entry depends on its own image alone.

    Returns:
        Logits ``(N, C)``, at least float32; the loss ``(N,)``; its gradient, like ``adv``, zero where the model's is
        NaN and where the model cuts the graph, as one that compares pixels with a threshold does. None has a graph.
    """
    adv = adv.detach().requires_grad_()
    logits = logits_of(model, adv)
    values = loss(logits)
    grad = None
    if values.requires_grad:
        (grad,) = torch.autograd.grad(values.sum(), adv, allow_unused=True)
    grad = torch.zeros_like(adv) if grad is None else grad
    # A model that returns NaN or infinity must not carry the images out of the box.
    return logits.detach(), values.detach(), grad.nan_to_num_(nan=0.0)


def at_least_float32(logits: Tensor) -> Tensor:
    """Undo autocast's rounding type, in which a loss has few digits."""
    return logits if logits.dtype == torch.float64 else logits.float()
