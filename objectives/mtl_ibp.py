"""MTL-IBP: the adversarial loss, kept honest by a share of a bound that no attack can exceed."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import Attack
from networks.interval import interval_logits
from objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput


@dataclass(frozen=True)
class MTLIBP(Objective):
    """Minimise ``(1 - weight) adversarial + weight bound`` (De Palma et al. 2024, section 4.2).

    The bound is the cross-entropy of the logits that interval bound propagation allows in the worst case, at the same
    eps as the attack, l-inf. A few hundredths of it change what adversarial training finds at a large eps:
    the network is held to features whose reaction to the whole ball is bounded, not only to the points that a few
    attack steps reach. One batch of it costs about two gradient evaluations.

    Attributes:
        weight: Share of the bound, in [0, 1]; alpha in the paper.
        adversarial: The other share.

    Raises:
        ValueError: If the weight is outside [0, 1], or on the first batch if the attack's norm is not Linf.
        TypeError: On the first batch, if the network has an operation without an interval bound.
    """

    weight: float = 0.02
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`; ``parts`` holds ``adversarial_loss`` and ``bound_loss``."""
        if attack.norm != "Linf":
            raise ValueError(f"MTLIBP bounds the l-inf ball, got an attack with the norm {attack.norm}")
        adversarial = self.adversarial(network, images, labels, attack, eps, generator)
        bound = F.cross_entropy(interval_logits(network, images, eps).worst_logits(labels), labels)
        loss = (1 - self.weight) * adversarial.loss + self.weight * bound
        return ObjectiveOutput(loss, adversarial.logits, {"adversarial_loss": adversarial.loss, "bound_loss": bound})
