"""Images that a model classifies correctly both clean and under an attack."""

import torch
from torch import Tensor

from rampart.attacks import Attack, Eps
from rampart.attacks.attack import attack_active
from rampart.attacks.context import Model
from rampart.attacks.logits import compute_logits
from rampart.attacks.validation import check_finite, check_labels


def robust_mask(
    model: Model,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    eps: Eps,
    generator: torch.Generator | None = None,
    active: Tensor | None = None,
    where: str | None = None,
) -> Tensor:
    """Return which images are classified correctly both clean and under an attack.

    Misclassified clean images are not attacked. Random numbers are drawn for the whole batch, so an image's result
    does not depend on which other images are attacked. The model is called under ``no_grad``, in the mode it is in.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        attack: Any attack.
        eps: Radius on the pixel scale.
        generator: Source of the attack's random numbers, on the images' device; the global one if None.
        active: ``(N,)``, bool: the images to attack, where the caller knows it already; the others count as not robust.
            If None, the model classifies the clean images first.
        where: Names the attacked images in an error, such as ``"under PGD-40 @ 0.3 on batch 2"``; the attack's name and
            eps if None.

    Returns:
        ``(N,)``, bool.

    Raises:
        ValueError: If a label is no class of the model, a logit is NaN or infinite, or for the attack's own reasons.
    """
    if active is None:
        logits = _logits(model, images, "on clean images")
        check_labels(labels, logits)
        active = logits.argmax(1) == labels
    if not bool(active.any()):
        return active
    adv = attack_active(attack, model, images, labels, eps, generator, active)
    logits = _logits(model, adv, where or f"under {attack.name} at eps {eps}")
    return active & (logits.argmax(1) == labels)


def _logits(model: Model, images: Tensor, where: str) -> Tensor:
    with torch.no_grad():
        logits = compute_logits(model, images)
    check_finite(logits, where)
    return logits
