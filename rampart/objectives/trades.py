"""TRADES: the clean loss, plus a penalty on changes of the prediction within the ball."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from rampart.attacks import Attack
from rampart.attacks.input_gradient import predict
from rampart.attacks.logits import compute_logits
from rampart.attacks.losses import AttackLoss, LossName, ReferenceLoss
from rampart.attacks.validation import check_labels
from rampart.networks import MNISTCNN, GatedMNISTCNN, Normalize
from rampart.networks.gates import GateConv2d, Gates
from rampart.objectives.adversarial_training import Objective, ObjectiveOutput

MODE_DEPENDENT = (  # Layers of torch that compute different functions in train and eval mode.
    _NormBase,
    _DropoutNd,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)

MODE_INDEPENDENT = (MNISTCNN, GatedMNISTCNN, Normalize, Gates, GateConv2d)


@dataclass(frozen=True)
class TRADES(Objective):
    """Minimise ``CE(f(x), y) + beta KL(f(x) || f(x_adv))``, where the attack maximises KL (Zhang et al. 2019, eq. 5).

    KL replaces the attack's loss. Its gradient is zero at the clean images, so the attack needs a random start.

    Both passes of a KL are in the same mode: the attack's mode (usually eval) in the attack, train mode in the training
    loss. The clean batch costs one extra forward and backward pass per update; its logits are also the attack's
    reference. Only if the two modes may differ, as with BatchNorm or dropout, the reference is a separate forward pass.
    The authors compute the clean batch twice in train mode, which updates BatchNorm's statistics once more.

    Attributes:
        beta: Weight of the second term, 1 / lambda in the paper; 6 in its CIFAR-10 experiments.

    Raises:
        ValueError: If beta is negative. Raised by ``check`` and on the first batch if the attack starts at the clean
            images or leaves fooled images out.
        TypeError: Raised by ``check`` and on the first batch if the attack's loss can't be replaced.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

    def check(self, attack: Attack, network: nn.Module) -> None:  # noqa: ARG002 - accepts any network
        """See :meth:`Objective.check`.

        KL compares each image with its reference, so the attack has to keep the whole batch. It is flat at the clean
        image, so the attack has to start elsewhere.

        Raises:
            TypeError: If the attack's loss can't be replaced.
            ValueError: If the attack starts at the clean images, or leaves fooled images out of its batch.
        """
        self._prepare(attack, "cross_entropy")

    def _prepare(self, attack: Attack, loss: LossName | AttackLoss) -> Attack:
        """Return the attack with another loss; errors are those of :meth:`check`."""
        try:
            prepared = attack.with_loss(loss)
        except TypeError as error:
            raise TypeError(f"TRADES needs an attack whose loss it can replace, such as PGD, got {attack}") from error
        if attack.drops_fooled_images:
            raise ValueError(
                "TRADES needs an attack that keeps attacking fooled images, such as PGD without stop_when_fooled, got "
                f"{attack}"
            )
        if attack.starts_at_images:
            raise ValueError(
                "TRADES needs an attack with a random start, as KL has no gradient at the clean images, such as PGD "
                f"with start: Uniform, got {attack}"
            )
        return prepared

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
        clean = None if _depends_on_mode(network) else compute_logits(network, images)
        divergence = _AttackDivergence(network, images, None if clean is None else clean.detach())
        adv = self._prepare(attack, divergence)(network, images, labels, eps, generator=generator)
        clean = compute_logits(network, images) if clean is None else clean
        if eps == 0:  # The attack checks the labels only if it has steps to make.
            check_labels(labels, clean)
        clean_loss = F.cross_entropy(clean, labels)
        logits = compute_logits(network, adv)
        kl = _divergence(clean.log_softmax(1), logits).mean()
        adv_loss = F.cross_entropy(logits.detach(), labels)
        parts = {"adv_loss": adv_loss, "clean_loss": clean_loss, "kl": kl}
        return ObjectiveOutput(clean_loss + self.beta * kl, logits, parts)


class _AttackDivergence(ReferenceLoss):
    """The attack's loss: KL of its logits from the clean logits, computed in the mode that the attack runs in."""

    kind = "KL divergence"

    def __init__(self, network: nn.Module, images: Tensor, clean: Tensor | None) -> None:
        self.network, self.images, self.clean = network, images, clean

    def reference(self) -> tuple[Tensor, ...]:
        if self.clean is None:  # Computed inside the attack, where the network is in the attack's mode.
            self.clean = predict(self.network, self.images)
        return (self.clean.log_softmax(1),)  # once per attack

    def compare(self, logits: Tensor, labels: Tensor, *reference: Tensor) -> Tensor:  # noqa: ARG002 - an attack's loss
        return _divergence(reference[0], logits)


def _depends_on_mode(network: nn.Module) -> bool:
    """Return True if train and eval mode may differ; layers that are not known here and hooks count as different."""
    return any(
        not (type(module) in MODE_INDEPENDENT or type(module).__module__.startswith("torch.nn.modules."))
        or isinstance(module, MODE_DEPENDENT)
        or module._forward_hooks
        or module._forward_pre_hooks
        for module in network.modules()
    )


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """Return KL(exp(clean) || softmax(logits)) per image, ``(N,)``, for log-probabilities ``clean``."""
    return F.kl_div(logits.log_softmax(1), clean, reduction="none", log_target=True).sum(1)
