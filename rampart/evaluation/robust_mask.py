"""Images that a model classifies correctly both clean and under an attack."""

import torch
from torch import Tensor

from rampart.attacks import Attack, Eps, Model, attack_active
from rampart.attacks.input_gradient import predict
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
    """Return a mask of the images that are classified correctly both clean and under an attack.

    Misclassified clean images are not attacked. Random numbers are drawn for the whole batch, so an image's result
    does not depend on which other images are attacked. The model is called under ``no_grad``, in the mode it is in.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        attack: Any attack.
        eps: Radius on the pixel scale.
        generator: Source of the attack's random numbers, on the images' device; the global one if None.
        active: ``(N,)``, bool, the correctly classified clean images; the others count as not robust. If None, the
            model classifies the clean images first.
        where: Description of the attacked images for an error, such as ``"under PGD-40 @ 0.3 on batch 2"``; the
            attack's name and eps if None.

    Returns:
        ``(N,)``, bool.

    Raises:
        ValueError: If a label is no class of the model or a logit is NaN or infinite. The attack may raise further
            errors.
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
    logits = predict(model, images)
    check_finite(logits, where)
    return logits
