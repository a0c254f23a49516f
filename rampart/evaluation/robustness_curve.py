"""Robust accuracy as a function of eps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rampart.attacks import Attack, Model, format_eps
from rampart.evaluation.robust_mask import robust_mask


def fooling_eps(
    model: Model,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    eps_grid: Sequence[float],
    generator: Callable[[float], torch.Generator | None] = lambda _eps: None,
) -> Tensor:
    """Find the smallest eps of a grid at which each image is misclassified.

    An image that is fooled at one eps counts as fooled at every larger one, so only images that are still robust
    are attacked.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        images: ``(N, ...)``, float, in [0, 1].
        labels: ``(N,)``, int64.
        attack: The attack to run at each eps.
        eps_grid: Radii on the pixel scale, rising.
        generator: Function that returns the source of the attack's random numbers at an eps, or None for torch's global
            one.

    Returns:
        ``(N,)``, float64: an eps of the grid, or infinity if the image is robust at every eps of the grid.

    Raises:
        ValueError: If the grid does not rise, or the model's logits are not finite.
    """
    if any(low >= high for low, high in pairwise(eps_grid)):
        raise ValueError(f"eps_grid must rise, got {list(eps_grid)}")
    smallest = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=labels.device)
    for eps in eps_grid:
        active = smallest.isinf()
        if not bool(active.any()):
            break
        where = f"under {attack.name} at eps {format_eps(eps)}"
        robust = robust_mask(model, images, labels, attack, eps, generator(eps), active, where)
        smallest = smallest.where(~active | robust, eps)
    return smallest
