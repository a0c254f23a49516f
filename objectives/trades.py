"""TRADES: accuracy on the images as they are, and the same answer all over the ball."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import Attack
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
        TypeError: On the first batch, if the attack has no ``loss`` to replace.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

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
        if not is_dataclass(attack) or not hasattr(attack, "loss"):
            raise TypeError(f"TRADES needs an attack whose loss it can replace, such as PGD, got {attack}")
        clean = network(images)
        check_labels(labels, clean)
        clean_loss = F.cross_entropy(clean, labels)
        settings: Any = replace(attack, loss=_divergence_from(clean.detach()))
        logits = network(settings(network, images, labels, eps, generator=generator))
        kl = _divergence(clean, logits).mean()
        adv_loss = F.cross_entropy(logits.detach(), labels)
        parts = {"adv_loss": adv_loss, "clean_loss": clean_loss, "kl": kl}
        return ObjectiveOutput(clean_loss + self.beta * kl, logits, parts)


def _divergence_from(clean: Tensor) -> AttackLoss:
    return lambda logits, _labels: _divergence(clean, logits)


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(logits)) for each image, ``(N,)``."""
    return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
