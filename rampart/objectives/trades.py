"""TRADES: accuracy on the images as they are, and the same answer all over the ball."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from rampart.attacks import Attack
from rampart.attacks.logits import compute_logits
from rampart.attacks.validation import check_labels
from rampart.networks import MNISTCNN, GatedMNISTCNN, Normalize
from rampart.networks.gates import GateConv2d, Gates
from rampart.objectives.adversarial_training import Objective, ObjectiveOutput

MODE_DEPENDENT = (  # Layers of torch that are one function in train mode and another in eval mode.
    _NormBase,
    _DropoutNd,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)

OF_ONE_MODE = (MNISTCNN, GatedMNISTCNN, Normalize, Gates, GateConv2d)


@dataclass(frozen=True)
class TRADES(Objective):
    """Minimise ``CE(f(x), y) + beta KL(f(x) || f(x_adv))``, the attack raising KL (Zhang et al. 2019, eq. 5).

    The attack's own loss is replaced by KL. KL's gradient is zero at the images themselves, so the attack needs a
    random start. Each KL compares two passes of one mode: the attack's in the mode that it runs in, usually eval, the
    one that is trained on in train mode. The clean batch is one gradient evaluation more per update, and serves as the
    attack's reference too; only where the two modes may differ, as with BatchNorm or dropout, that one is a forward
    pass of its own. The authors compute the clean batch twice in train mode, which moves BatchNorm's statistics once
    more.

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

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: ARG002 - suits any network
        """See :meth:`Objective.check`. KL compares an image with its own reference and is flat at the image.

        Raises:
            TypeError: If the attack has no loss to replace.
            ValueError: If the attack starts at the images, or leaves fooled images out of its batch.
        """
        try:
            attack.with_loss("cross_entropy")
        except TypeError as error:
            raise TypeError(f"TRADES needs an attack whose loss it can replace, such as PGD, got {attack}") from error
        if attack.drops_fooled_images:
            raise ValueError(
                "TRADES needs an attack that continues with fooled images, such as PGD without stop_when_fooled, got "
                f"{attack}"
            )
        if attack.starts_at_images:
            raise ValueError(
                "TRADES needs an attack with a random start, as KL has no gradient at the images, such as PGD with "
                f"start: Uniform, got {attack}"
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
        clean = None if _depends_on_mode(network) else compute_logits(network, images)
        divergence = _AttackDivergence(network, images, None if clean is None else clean.detach())
        adv = attack.with_loss(divergence)(network, images, labels, eps, generator=generator)
        clean = compute_logits(network, images) if clean is None else clean
        check_labels(labels, clean)
        clean_loss = F.cross_entropy(clean, labels)
        logits = compute_logits(network, adv)
        kl = _divergence(clean, logits).mean()
        adv_loss = F.cross_entropy(logits.detach(), labels)
        parts = {"adv_loss": adv_loss, "clean_loss": clean_loss, "kl": kl}
        return ObjectiveOutput(clean_loss + self.beta * kl, logits, parts)


class _AttackDivergence:
    """KL to the attack's images, of the network's own output on the clean ones in the mode that the attack runs in."""

    def __init__(self, network: nn.Module, images: Tensor, reference: Tensor | None) -> None:
        self.network, self.images, self.reference = network, images, reference

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - an attack's loss
        if self.reference is None:  # Asked for inside the attack: there, the network is in the attack's mode.
            with torch.no_grad():
                self.reference = compute_logits(self.network, self.images)
        return _divergence(self.reference, logits)


def _depends_on_mode(network: nn.Module) -> bool:
    """Tell whether train and eval mode may be two functions: true of layers and hooks that are not known here."""
    return any(
        not (type(module) in OF_ONE_MODE or type(module).__module__.startswith("torch.nn.modules."))
        or isinstance(module, MODE_DEPENDENT)
        or module._forward_hooks
        or module._forward_pre_hooks
        for module in network.modules()
    )


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(logits)) for each image, ``(N,)``."""
    return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
