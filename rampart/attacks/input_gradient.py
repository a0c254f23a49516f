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
    """Compute logits, and the gradient of a per-image loss with respect to the images.

    Args:
        model: Maps images to logits ``(N, C)``.
        adv: ``(N, ...)``, without a graph.
        loss: Maps logits to ``(N,)``; each entry depends on its own image alone.

    Returns:
        Logits ``(N, C)``, at least float32; the loss ``(N,)``; its gradient, like ``adv``. The gradient is zero where
        the model's is NaN, and where the model is not differentiable, such as one that compares pixels with a
        threshold. None of the three has a graph.
    """
    logits, values, grad, _ = _differentiate(model, adv, loss, ())
    return logits, values, grad


def loss_gradient_of_weights(
    model: Model, adv: Tensor, loss: PerImageLoss, weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Compute the gradient of a loss per image and that of its mean with respect to weights, in one backward pass.

    Args:
        model: As for :func:`loss_gradient`.
        adv: ``(N, ...)``, without a graph.
        loss: Maps logits to ``(N,)``.
        weights: Leaves of the model's graph.

    Returns:
        The gradient with respect to the images, as in :func:`loss_gradient`, and one for each weight; None for a
        weight on which the loss does not depend.
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
        gradients = torch.autograd.grad(values, [adv, *weights], torch.ones_like(values), allow_unused=True)
    grad = torch.zeros_like(adv) if gradients[0] is None else gradients[0]
    # NaN from the model must not move images out of the box.
    return logits.detach(), values.detach(), grad.nan_to_num(nan=0.0), gradients[1:]


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a mask of the images that are not classified correctly; ``(N,)``, bool.

    NaN or infinite logits count as misclassified, so an attack that finds them returns the point. The prediction there
    then fails :func:`rampart.attacks.validation.check_finite`.
    """
    largest, classes = logits.max(1)  # NaN where any logit is
    return (classes != labels) | ~largest.isfinite()
