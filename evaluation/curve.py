"""Robust accuracy as a function of eps."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from attacks import Attack
from attacks.context import Model


def fooling_eps(
    model: Model,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    eps_grid: Sequence[float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find the smallest eps of a grid at which each image is answered wrongly.

    An image that is fooled at one eps counts as fooled at every larger one, so only the images that still stand
    are attacked.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        images: ``(N, ...)``, float, in [0, 1].
        labels: ``(N,)``, int64.
        attack: The attack at each eps; none is needed at 0.
        eps_grid: Rising, pixel scale.
        generator: Source of the attack's random starts.

    Returns:
        ``(N,)``, float64: an eps of the grid, or infinity where the image withstands them all.

    Raises:
        ValueError: If the grid does not rise.
    """
    if any(low >= high for low, high in pairwise(eps_grid)):
        raise ValueError(f"eps_grid must rise, got {list(eps_grid)}")
    smallest = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=labels.device)
    standing = torch.arange(len(labels), device=labels.device)
    for eps in eps_grid:
        adv = attack(model, images[standing], labels[standing], eps, generator=generator)
        with torch.no_grad():
            fooled = model(adv).argmax(1) != labels[standing]
        smallest[standing[fooled]] = eps
        standing = standing[~fooled]
        if len(standing) == 0:
            break
    return smallest
