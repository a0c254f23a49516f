"""TRADES: accuracy on the images as they are, and the same answer all over the ball."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import APGD, Attack, MixedPGD
from attacks.checks import check_labels
from attacks.losses import AttackLoss
from objectives.adversarial_training import Objective, ObjectiveOutput


@dataclass(frozen=True)
class TRADES(Objective):
    """Minimise ``CE(f(x), y) + beta KL(f(x) || f(x_adv))``, the attack raising KL (Zhang et al. 2019, eq. 5).

    The attack's own loss is replaced by KL. KL's gradient is zero at the images themselves, so the attack needs a
    random start. The clean batch is one gradient evaluation more per update, and serves as the attack's reference too:
    the authors compute that one in eval mode, which networks with BatchNorm or dropout notice.

    Attributes:
        beta: Weight of the second term, 1 / lambda in the paper; 6 in its CIFAR-10 experiments.

    Raises:
        ValueError: If beta is negative.
        TypeError: By ``check`` and on the first batch, if the attack has no ``loss`` to replace.
        ValueError: Likewise, if its settings go ill with KL; see ``check``.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

    def check(self, attack: Attack, network: nn.Module) -> None:
        """See :meth:`Objective.check`. KL compares an image with its own reference and is flat at the image.

        Raises:
            TypeError: If the attack has no loss to replace, or leaves images out of its batch.
            ValueError: If the attack starts at the images, or leaves fooled images out of its batch.
        """
        if isinstance(attack, MixedPGD):
            for each in attack.attacks:
                self.check(each, network)
            return
        if isinstance(attack, APGD):
            raise TypeError(f"TRADES needs an attack that goes on with fooled images, such as PGD, got {attack}")
        if not is_dataclass(attack) or not hasattr(attack, "loss"):
            raise TypeError(f"TRADES needs an attack whose loss it can replace, such as PGD, got {attack}")
        if not getattr(attack, "random_start", True) and getattr(attack, "start_levels", None) is None:
            raise ValueError(
                "TRADES needs an attack with a random start, as KL has no gradient at the images: set "
                "attack.random_start to true, got false"
            )
        if getattr(attack, "stop_when_fooled", False):
            raise ValueError(
                "TRADES needs an attack that goes on with fooled images: set attack.stop_when_fooled to false, got true"
            )

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`; ``parts`` holds ``adv_loss``, ``clean_loss`` and ``kl``."""
        self.check(attack, network)
        clean = network(images)
        check_labels(labels, clean)
        clean_loss = F.cross_entropy(clean, labels)
        raising_kl = _with_loss(attack, _divergence_from(clean.detach()))
        logits = network(raising_kl(network, images, labels, eps, generator=generator))
        kl = _divergence(clean, logits).mean()
        adv_loss = F.cross_entropy(logits.detach(), labels)
        parts = {"adv_loss": adv_loss, "clean_loss": clean_loss, "kl": kl}
        return ObjectiveOutput(clean_loss + self.beta * kl, logits, parts)


def _with_loss(attack: Any, loss: AttackLoss) -> Attack:
    """Copy an attack with another loss to raise."""
    if isinstance(attack, MixedPGD):
        return replace(attack, attacks=tuple(replace(each, loss=loss) for each in attack.attacks))
    changed: Attack = replace(attack, loss=loss)
    return changed


def _divergence_from(clean: Tensor) -> AttackLoss:
    return lambda logits, _labels: _divergence(clean, logits)


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(logits)) for each image, ``(N,)``."""
    return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
