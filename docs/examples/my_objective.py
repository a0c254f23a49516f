"""A custom objective: a weighted sum of the clean and the adversarial loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.objectives import Objective, ObjectiveOutput


@dataclass(frozen=True)
class CleanAndAdversarial(Objective):
    """Minimise ``clean_weight * clean loss + (1 - clean_weight) * adversarial loss`` (Goodfellow et al. 2015).

    Attributes:
        clean_weight: Share of the clean loss, in [0, 1].
    """

    clean_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight <= 1:
            raise ValueError(f"clean_weight must be in [0, 1], got {self.clean_weight}")

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`rampart.objectives.Objective.__call__`."""
        adv = attack(network, images, labels, eps, generator=generator)
        logits = network(adv)
        adv_loss = F.cross_entropy(logits, labels)
        clean_loss = F.cross_entropy(network(images), labels)
        loss = self.clean_weight * clean_loss + (1 - self.clean_weight) * adv_loss
        return ObjectiveOutput(loss, logits, {"adv_loss": adv_loss, "clean_loss": clean_loss})
