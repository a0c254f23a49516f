"""MTL-IBP: a mixture of the adversarial loss and an upper bound on it."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.bounds import check_bounded, interval_logits
from rampart.objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput


@dataclass(frozen=True)
class MTLIBP(Objective):
    """Minimise ``(1 - weight) adversarial + weight bound`` (De Palma et al. 2024, section 4.2).

    The bound is the cross-entropy of the worst-case logits by interval bound propagation (IBP). Up to rounding, no
    attack exceeds it. It costs as much as two forward and backward passes. Unlike in the authors' runs, its radius is
    that of the attack, and there is no L1 penalty.

    BatchNorm in train mode bounds by the statistics of the clean images, and updates its running statistics twice.

    Attributes:
        weight: Weight of the bound, in [0, 1]; alpha in the paper, which uses 0.01 to 0.08 on MNIST at eps 0.1 and 0.3.
        adversarial: The adversarial loss.

    Raises:
        ValueError: If the weight is outside [0, 1]. Raised by ``check`` and on the first batch if the attack's norm is
            not Linf.
        TypeError: Raised by ``check`` or on the first batch if the network has an operation without an interval bound.
    """

    weight: float = 0.02
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")

    @property
    def accumulates(self) -> bool:
        """True if the adversarial loss accumulates."""
        return self.adversarial.accumulates

    def check(self, attack: Attack, network: nn.Module) -> None:
        """See :meth:`Objective.check`."""
        self.adversarial.check(attack, network)
        if self.weight > 0:
            self._check_norm(attack)
            check_bounded(network)

    def _check_norm(self, attack: Attack) -> None:
        if attack.norm != "Linf":
            raise ValueError(f"MTLIBP bounds the l-inf ball, got an attack with the norm {attack.norm}")

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`; ``parts`` holds ``adv_loss`` and ``bound_loss``."""
        adversarial = self.adversarial(network, images, labels, attack, eps, generator)
        if self.weight == 0:
            return adversarial
        self._check_norm(attack)
        bound = F.cross_entropy(interval_logits(network, images, eps).worst_logits(labels), labels)
        loss = (1 - self.weight) * adversarial.loss + self.weight * bound
        return ObjectiveOutput(loss, adversarial.logits, {"adv_loss": adversarial.loss, "bound_loss": bound})
