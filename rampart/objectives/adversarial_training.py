"""Training objectives, as objects: ``(network, images, labels, attack, eps) -> loss and parts``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.attacks.logits import compute_logits
from rampart.attacks.validation import check_labels
from rampart.objectives.leftover import attack_with_leftover, check_leftover


class ObjectiveOutput(NamedTuple):
    """Result of an objective.

    Attributes:
        loss: Scalar to minimise, with its graph.
        logits: ``(N, C)``, on the adversarial images, for the training accuracy.
        parts: Further scalars to log, by name; where ``loss`` is something else than the adversarial loss, that one is
            among them as ``adv_loss``.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor]


class Objective(ABC):
    """A training objective; :class:`AdversarialTraining` is one."""

    @property
    def accumulates(self) -> bool:
        """True if gradients of several batches may be summed before an update."""
        return True

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: B027 - most objectives take all
        """Refuse, before training, an attack or a network that this objective can't work with.

        Args:
            attack: The inner maximisation of training.
            network: As it will be trained; left as it is.

        Raises:
            TypeError: If the attack or a layer is of a kind that the objective can't use.
            ValueError: If one of their settings is.
        """

    @abstractmethod
    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """Return the loss of one batch.

        Args:
            network: In train mode.
            images: ``(N, C, H, W)``, float, in [0, 1].
            labels: ``(N,)``, int64.
            attack: The inner maximisation.
            eps: Its radius for this batch, pixel scale.
            generator: Source of the attack's random starts.
        """


@dataclass(frozen=True)
class AdversarialTraining(Objective):
    """Minimise the loss at the attack's images (Madry et al. 2018, eq. 2.1).

    Attributes:
        loss: ``(logits, labels) -> scalar``, such as ``torch.nn.CrossEntropyLoss`` with label smoothing; the
            mean cross-entropy if None.
        leftover_gradient: Reproduce the published code of Shaeiri et al. 2020, which clears the weights'
            gradients before each attack step but not after the last one: every update then adds the gradient
            at the attack's last but one iterate to that at its result. Needs a PGD of one run with steps of one
            length that returns its last iterate, and one loss for attack and training, the cross-entropy. That gradient
            comes from the pass of the attack's last step, as in their code, so it costs no pass of its own.

    Raises:
        TypeError: By ``check`` and on the first batch, if ``leftover_gradient`` is set and the attack or the loss are
            not as it needs them.
    """

    loss: nn.Module | None = None
    leftover_gradient: bool = False

    @property
    def accumulates(self) -> bool:
        """Not with the leftover gradient: the published loop clears what earlier batches would leave."""
        return not self.leftover_gradient

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: ARG002 - takes any network
        """See :meth:`Objective.check`."""
        if self.leftover_gradient:
            check_leftover(attack, self.loss)

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        leftover: Tensor | None = None
        if self.leftover_gradient and eps > 0:
            pgd = check_leftover(attack, self.loss)
            adv, leftover = attack_with_leftover(pgd, network, images, labels, eps, generator)
        else:
            adv = attack(network, images, labels, eps, generator=generator)
        logits = compute_logits(network, adv)
        if eps == 0:  # The attack checks the labels, but not where it has nothing to do.
            check_labels(labels, logits)
        loss: Tensor = (self.loss or F.cross_entropy)(logits, labels)
        return ObjectiveOutput(loss if leftover is None else loss + leftover, logits, {})
