"""A model's logits, and the gradient of a per-image loss with respect to the images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.logits import compute_logits

PerImageLoss = Callable[[Tensor], Tensor]


def predict(model: Model, images: Tensor) -> Tensor:
    """Compute logits without a graph; see :func:`rampart.attacks.logits.compute_logits`."""
    with torch.no_grad():
        return compute_logits(model, images)


def loss_gradient(model: Model, adv: Tensor, loss: PerImageLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Compute logits, and differentiate a loss of them with respect to each image.

    Args:
        model: Maps images to logits ``(N, C)``.
        adv: ``(N, ...)``, without a graph.
        loss: Maps logits to ``(N,)``; each entry depends on its own image alone.

    Returns:
        Logits ``(N, C)``, at least float32; the loss ``(N,)``; its gradient, like ``adv``, zero where the model's is
        NaN and where the model cuts the graph, as one that compares pixels with a threshold does. None has a graph.
    """
    logits, values, grad, _ = _differentiate(model, adv, loss, ())
    return logits, values, grad


def loss_gradient_of_weights(
    model: Model, adv: Tensor, loss: PerImageLoss, weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Differentiate a loss with respect to the images, and its mean over them with respect to weights, in one pass.

    Args:
        model: As for :func:`loss_gradient`.
        adv: ``(N, ...)``, without a graph.
        loss: Maps logits to ``(N,)``.
        weights: Leaves of the model's graph.

    Returns:
        The gradient of the images, as of :func:`loss_gradient`, and that of each weight, None where there is none.
    """
    _, _, grad, gradients = _differentiate(model, adv, loss, weights)
    return grad, tuple(None if gradient is None else gradient / len(adv) for gradient in gradients)


def _differentiate(
    model: Model, adv: Tensor, loss: PerImageLoss, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor | None]]:
    adv = adv.detach().requires_grad_()
    logits = compute_logits(model, adv)
    values = loss(logits)
    gradients: Sequence[Tensor | None] = [None] * (1 + len(weights))
    if values.requires_grad:
        gradients = torch.autograd.grad(values.sum(), [adv, *weights], allow_unused=True)
    grad = torch.zeros_like(adv) if gradients[0] is None else gradients[0]
    # A model that returns NaN or infinity must not carry the images out of the box.
    return logits.detach(), values.detach(), grad.nan_to_num(nan=0.0), gradients[1:]


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Mask of the images that a model does not classify correctly; ``(N,)``, bool.

    Logits that are NaN or infinite are no correct prediction: an attack that meets them has fooled the model, and
    returns the point, where :func:`rampart.attacks.validation.check_finite` finds them again.
    """
    largest, classes = logits.max(1)  # NaN where any logit is
    return (classes != labels) | ~largest.isfinite()
