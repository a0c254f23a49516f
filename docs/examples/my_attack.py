"""A custom attack: the worst of several random points of the ball. It uses no gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.attacks import NORMS, Attack, Eps, Model, NormName, parse_eps
from rampart.attacks.context import attack_context
from rampart.attacks.logits import compute_logits
from rampart.attacks.losses import margin


@dataclass(frozen=True)
class RandomPoints(Attack):
    """Try random points of the ball and keep each image's worst.

    Attributes:
        points: Number of random points per image.
        norm: ``"Linf"`` or ``"L2"``.
    """

    points: int = 10
    norm: NormName = "Linf"

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}")

    @property
    def name(self) -> str:
        """Row title in tables."""
        return f"random-{self.points}"

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :meth:`rampart.attacks.Attack.__call__`."""
        radius = parse_eps(eps, self.norm)
        with attack_context(model, "eval", images.device.type), torch.no_grad():
            worst, highest = images, margin(compute_logits(model, images), labels)  # (N,), positive if fooled
            for _ in range(self.points):
                adv = NORMS[self.norm].random_start(images, radius, generator)
                loss = margin(compute_logits(model, adv), labels)
                worse = (loss > highest).view(-1, *[1] * (images.ndim - 1))  # (N, 1, 1, 1)
                worst, highest = torch.where(worse, adv, worst), torch.maximum(loss, highest)
        return worst
