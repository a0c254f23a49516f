"""What training minimises, as an object: ``(network, images, labels, attack, eps) -> loss and parts``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD, Attack
from attacks.checks import check_labels


class ObjectiveOutput(NamedTuple):
    """What an objective hands back.

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
            length that returns its last iterate. That gradient comes from a forward pass of its own, which networks
            with BatchNorm or dropout notice; on the paper's MNIST network the two are equal.

    Raises:
        TypeError: On the first batch, if ``leftover_gradient`` is set and the attack is not a single-run PGD.
    """

    loss: nn.Module | None = None
    leftover_gradient: bool = False

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
        if self.leftover_gradient and eps > 0:
            return self._with_leftover(network, images, labels, attack, eps, generator)
        logits = network(attack(network, images, labels, eps, generator=generator))
        if eps == 0:  # The attack checks the labels, but not where it has nothing to do.
            check_labels(labels, logits)
        return ObjectiveOutput(self._loss(logits, labels), logits, {})

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = (self.loss or F.cross_entropy)(logits, labels)
        return loss

    def _with_leftover(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None,
    ) -> ObjectiveOutput:
        if (
            not isinstance(attack, PGD)
            or attack.restarts > 1
            or attack.iterate != "last"
            or attack.step_schedule != "constant"
            or attack.stop_when_fooled
        ):
            raise TypeError(
                "leftover_gradient needs a PGD with one run, constant steps, its last iterate and no stop when fooled, "
                f"got {attack}"
            )
        steps, step_size = attack.steps_at(eps), attack.step_size_at(eps)
        all_but_last = replace(attack, steps=max(steps - 1, 0), step_size=step_size, relative_step_size=None)
        last = replace(all_but_last, steps=min(steps, 1))
        previous = all_but_last(network, images, labels, eps, generator=generator)
        logits = network(last(network, images, labels, eps, start=previous))
        leftover = self._loss(network(previous), labels) if steps else logits.new_zeros(())
        # Adds the gradient alone: the value stays that of the adversarial loss.
        return ObjectiveOutput(self._loss(logits, labels) + leftover - leftover.detach(), logits, {})
