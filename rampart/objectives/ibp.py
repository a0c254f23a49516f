"""Certified training: minimise an upper bound on the loss of all images in the ball."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import Attack, Eps, parse_eps
from rampart.attacks.random import get_share
from rampart.attacks.validation import check_classes
from rampart.bounds import Interval, check_bounded, interval_logits
from rampart.objectives.adversarial_training import Objective, ObjectiveOutput
from rampart.objectives.bound_regularisers import CLEAN_PHASE_EPS, penalise_weights, regularise_bounds


@dataclass(frozen=True)
class IBP(Objective):
    """Minimise ``kappa clean + (1 - kappa) worst``, a bound on the loss in the ball (Gowal et al. 2018, eq. 11).

    Both are cross-entropies: of the clean logits, and of the worst-case logits by interval bound propagation. There is
    no attack: ``model.attack`` gives the norm alone, which must be Linf. Eps has to rise slowly, best by a phase of the
    shape ``smoothed``. While it is 0, the loss is the clean one.

    Added are the warmup regularisers of Shi et al. 2021, with a weight that falls to 0 as eps rises, and an L1
    penalty. With kappa 0, the initialisation ``ibp`` of networks and a smoothed ramp, this is their training.

    BatchNorm bounds by the statistics of the clean batch, which passes through the network in the same call.

    The training accuracy is the certified one, of the worst-case logits, and ``adv_loss`` is the worst-case loss. The
    whole loss is computed in float32, also in a training with mixed precision.

    Attributes:
        target_eps: Eps at the end of the ramp, pixel scale, above 0, such as ``"16/255"``. Usually ``model.eps``, or
            slightly more. The weights of the terms depend on the share ``eps / target_eps`` of the ramp.
        clean_weight_start: Kappa at eps 0, in [0, 1]. It moves linearly with eps: 1 to 0.5 in Gowal et al., 0 to 0 in
            Shi et al.
        clean_weight_end: Kappa from ``target_eps`` on, in [0, 1].
        regularisation: Weight of the regularisers at eps 0; it falls linearly to 0 at ``target_eps``.
        tau: Ratio of radii, or of active to inactive neurons, below which the regularisers are above 0.
        l1: Weight of the sum of absolute weights of convolutions and linear layers, such as 1e-6.

    Raises:
        ValueError: If a setting is out of its range. Raised by ``check`` and on the first batch if the attack's norm is
            not Linf.
        TypeError: Raised by ``check`` or on the first batch if the network has an operation without an interval bound.
    """

    target_eps: Eps
    clean_weight_start: float = 0.0
    clean_weight_end: float = 0.0
    regularisation: float = 0.5
    tau: float = 0.5
    l1: float = 0.0

    def __post_init__(self) -> None:
        parse_target_eps(self.target_eps)
        for name in ("clean_weight_start", "clean_weight_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("regularisation", "l1"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.tau > 0:
            raise ValueError(f"tau must be above 0, got {self.tau}")

    @property
    def certifies(self) -> bool:
        """True: the loss bounds all images in the ball."""
        return True

    def check(self, attack: Attack, network: nn.Module) -> None:
        """See :meth:`Objective.check`."""
        self._check_norm(attack)
        check_bounded(network)

    def _check_norm(self, attack: Attack) -> None:
        if attack.norm != "Linf":
            raise ValueError(f"{type(self).__name__} bounds the l-inf ball, got an attack with the norm {attack.norm}")

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`.

        The logits are ``(N, C)``, the worst-case ones relative to the label's: an image that they classify correctly is
        certified. ``parts`` holds ``adv_loss`` (worst-case), ``clean_loss`` and ``regulariser``, without its weight.
        """
        self._check_norm(attack)
        progress = min(1.0, eps / parse_target_eps(self.target_eps))
        regularisation = self.regularisation * (1 - progress)
        trace = regularisation > 0 or self._needs_trace(progress)
        if eps == 0:
            interval = interval_logits(network, images, CLEAN_PHASE_EPS, images, trace)
        else:
            interval = self._bound(network, images, labels, attack, eps, generator, trace)
        check_classes(labels, interval.shape[1])
        worst = interval.worst_logits(labels) if eps == 0 else self._worst_logits(interval, labels, progress)
        assert interval.clean is not None
        clean_loss, worst_loss = F.cross_entropy(interval.clean, labels), F.cross_entropy(worst, labels)
        kappa = self.clean_weight_start + progress * (self.clean_weight_end - self.clean_weight_start)
        loss = _mix(clean_loss, worst_loss, 1.0 if eps == 0 else kappa)
        regulariser = worst.new_zeros(())
        if regularisation > 0:
            assert interval.operation is not None
            regulariser = regularise_bounds(interval.operation, self.tau, get_share(generator).processes)
            loss = loss + regularisation * regulariser
        if self.l1 > 0:
            loss = loss + self.l1 * penalise_weights(network)
        parts = {"adv_loss": worst_loss, "clean_loss": clean_loss, "regulariser": regulariser}
        return ObjectiveOutput(loss, worst, parts)

    def _needs_trace(self, progress: float) -> bool:  # noqa: ARG002 - of a subclass
        """Return True if the worst-case logits need the operations that led to the bounds."""
        return False

    def _bound(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,  # noqa: ARG002 - of a subclass
        attack: Attack,  # noqa: ARG002
        eps: float,
        generator: torch.Generator | None,  # noqa: ARG002
        trace: bool,
    ) -> Interval:
        """Return bounds on the logits, with those of the clean batch; eps is above 0."""
        return interval_logits(network, images, eps, images, trace)

    def _worst_logits(self, interval: Interval, labels: Tensor, progress: float) -> Tensor:  # noqa: ARG002
        """Return the worst-case logits ``(N, C)``, relative to the label's."""
        return interval.worst_logits(labels)


def parse_target_eps(target_eps: Eps) -> float:
    """Parse the eps at the end of the ramp.

    Raises:
        ValueError: If it is not in (0, 1].
    """
    parsed = parse_eps(target_eps, "Linf", "target_eps")
    if parsed == 0:
        raise ValueError(f"target_eps must be above 0, the end of the ramp such as 0.4, got {target_eps}")
    return parsed


def _mix(clean: Tensor, worst: Tensor, kappa: float) -> Tensor:
    """Return ``kappa clean + (1 - kappa) worst``, without a backward pass for a share of 0."""
    if kappa in (0, 1):
        return clean if kappa == 1 else worst
    return kappa * clean + (1 - kappa) * worst
