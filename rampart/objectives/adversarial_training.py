"""The interface of training objectives, and adversarial training."""

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
        logits: ``(N, C)``, logits of the adversarial images, for the training accuracy; the worst-case logits if the
            loss bounds a box.
        parts: Further scalars to log, by name. If ``loss`` is not the adversarial loss, they include it as
            ``adv_loss``.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor]


class Objective(ABC):
    """A training objective, such as :class:`AdversarialTraining`."""

    @property
    def accumulates(self) -> bool:
        """True if gradients of several batches may be summed before an update."""
        return True

    @property
    def certifies(self) -> bool:
        """True if the objective trains for certificates, so that training is measured by certified accuracy."""
        return False

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: B027 - most objectives accept all
        """Check, before training, that this objective can work with an attack and a network.

        Args:
            attack: The inner maximisation of training.
            network: The network to train, in the mode of training; not changed.

        Raises:
            TypeError: If the objective can't use this class of attack or a layer of the network.
            ValueError: If it can't use one of their settings.
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
            eps: Radius of the attack for this batch, pixel scale.
            generator: Source of the attack's random numbers; the global one if None.
        """


@dataclass(frozen=True)
class AdversarialTraining(Objective):
    """Minimise the loss of the adversarial images (Madry et al. 2018, eq. 2.1).

    Attributes:
        loss: ``(logits, labels) -> scalar``, such as ``torch.nn.CrossEntropyLoss`` with label smoothing; the
            mean cross-entropy if None.
        leftover_gradient: Reproduce the published code of Shaeiri et al. 2020, which clears the weights' gradients
            before each attack step but not after the last one. Every update then adds the gradient at the attack's last
            but one iterate to the gradient at its result. Needs a PGD with one run and a constant step size that
            returns its last iterate, and the cross-entropy as the loss of both attack and training. As in their code,
            the gradient comes from the backward pass of the attack's last step, so it costs no further pass.

    Raises:
        TypeError: Raised by ``check`` and on the first batch if ``leftover_gradient`` is set and the attack or the loss
            is unsuitable.
    """

    loss: nn.Module | None = None
    leftover_gradient: bool = False

    @property
    def accumulates(self) -> bool:
        """False with the leftover gradient: the published loop clears the gradients of earlier batches."""
        return not self.leftover_gradient

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: ARG002 - accepts any network
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
        adv, leftover = self.find_images(network, images, labels, attack, eps, generator)
        return self.compare(compute_logits(network, adv), labels, eps, leftover)

    def find_images(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attack a batch, with the arguments of a call.

        Returns:
            The adversarial images, and the leftover gradient as a scalar to add to the loss, or None.
        """
        if self.leftover_gradient and eps > 0:
            pgd = check_leftover(attack, self.loss)
            return attack_with_leftover(pgd, network, images, labels, eps, generator)
        return attack(network, images, labels, eps, generator=generator), None

    def compare(self, logits: Tensor, labels: Tensor, eps: float, leftover: Tensor | None) -> ObjectiveOutput:
        """Return the loss of the logits ``(N, C)`` of the images from :meth:`find_images`, plus their leftover."""
        if eps == 0:  # The attack checks the labels only if it has steps to make.
            check_labels(labels, logits)
        loss: Tensor = (self.loss or F.cross_entropy)(logits, labels)
        return ObjectiveOutput(loss if leftover is None else loss + leftover, logits, {})
