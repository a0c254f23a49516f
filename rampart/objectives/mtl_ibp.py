"""MTL-IBP: a mixture of the adversarial loss and an upper bound on it."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import Attack, Eps
from rampart.attacks.random import get_share
from rampart.bounds import check_bounded, interval_logits, uses_batch_statistics
from rampart.objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput
from rampart.objectives.bound_regularisers import CLEAN_PHASE_EPS, penalise_weights, regularise_bounds
from rampart.objectives.ibp import parse_target_eps


@dataclass(frozen=True)
class MTLIBP(Objective):
    """Minimise ``(1 - weight) adversarial + weight bound`` (De Palma et al. 2024, section 4.2).

    The bound is the cross-entropy of the worst-case logits by interval bound propagation (IBP). Up to rounding, no
    attack exceeds it. It costs as much as two forward and backward passes. Unlike in the authors' runs, its radius is
    that of the attack.

    BatchNorm in train mode bounds by the statistics of the adversarial images, as in the authors' code. These pass
    through the network once, in the same call as the bounds.

    Attributes:
        weight: Weight of the bound, in [0, 1]; alpha in the paper, which uses 0.01 to 0.08 on MNIST at eps 0.1 and 0.3.
        adversarial: The adversarial loss.
        l1: Weight of the sum of absolute weights of convolutions and linear layers; 1e-6 in the authors' runs.
        target_eps: Eps at the end of the ramp, pixel scale, above 0: adds the regularisers of :class:`IBP`. Without it,
            there are none.
        regularisation: Weight of the regularisers at eps 0; it falls linearly to 0 at ``target_eps``.

    Raises:
        ValueError: If a setting is out of its range. Raised by ``check`` and on the first batch if the attack's norm is
            not Linf.
        TypeError: Raised by ``check`` or on the first batch if the network has an operation without an interval bound.
    """

    weight: float = 0.02
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)
    l1: float = 0.0
    target_eps: Eps | None = None
    regularisation: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")
        for name in ("l1", "regularisation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.target_eps is not None:
            parse_target_eps(self.target_eps)

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
        if self.weight == 0:
            output = self.adversarial(network, images, labels, attack, eps, generator)
            parts = {"adv_loss": output.loss} if self.l1 > 0 else {}
            return ObjectiveOutput(self._add_l1(output.loss, network), output.logits, parts)
        self._check_norm(attack)
        regularisation = 0.0
        if self.target_eps is not None:
            regularisation = self.regularisation * (1 - min(1.0, eps / parse_target_eps(self.target_eps)))
        radius, trace = (max(eps, CLEAN_PHASE_EPS), True) if regularisation > 0 else (eps, False)
        if uses_batch_statistics(network):
            adv, leftover = self.adversarial.find_images(network, images, labels, attack, eps, generator)
            interval = interval_logits(network, images, radius, adv, trace)
            assert interval.clean is not None
            adversarial = self.adversarial.compare(interval.clean, labels, eps, leftover)
        else:
            adversarial = self.adversarial(network, images, labels, attack, eps, generator)
            interval = interval_logits(network, images, radius, trace=trace)
        bound = F.cross_entropy(interval.worst_logits(labels), labels)
        loss = self._add_l1((1 - self.weight) * adversarial.loss + self.weight * bound, network)
        parts = {"adv_loss": adversarial.loss, "bound_loss": bound}
        if self.target_eps is not None:
            parts["regulariser"] = loss.new_zeros(())
        if interval.operation is not None:
            processes = get_share(generator).processes
            parts["regulariser"] = regularise_bounds(interval.operation, processes=processes)
            loss = loss + regularisation * parts["regulariser"]
        return ObjectiveOutput(loss, adversarial.logits, parts)

    def _add_l1(self, loss: Tensor, network: nn.Module) -> Tensor:
        return loss + self.l1 * penalise_weights(network) if self.l1 > 0 else loss
