"""FAB: find the nearest point across the decision boundary, by linear approximation (Croce and Hein 2020b)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import loss_gradient, misclassified, predict
from rampart.attacks.norms import NORMS
from rampart.attacks.search import Found, Search, ranked_class
from rampart.attacks.validation import check_choice

LARGEST_PULL = 0.1  # alpha_max: largest weight of the step from the image in the mean of two steps
OVERSHOOT = 1.05  # eta: step length as a multiple of the distance to the linear boundary
BACKWARD = 0.9  # beta: share of its distance to the image that a fooling point keeps
SLOWEST = 1e-12  # pixels whose slope is a smaller share of the image's largest slope don't move (L2)


@dataclass(frozen=True)
class FAB(Search):
    """Targeted FAB (Croce and Hein 2020b, algorithm 1), the third member of AutoAttack.

    It searches for the smallest perturbation rather than the highest loss inside the ball. The search for an image ends
    with the first perturbation of at most eps. An image that is not fooled is returned unchanged. Random starts are
    uniform in their ball; the published code scales them to its surface.

    Attributes:
        steps: Steps per run.
        targets: Number of target classes: the most likely wrong ones, attacked in turn, at most all wrong classes.
        restarts: Runs per target. The first starts at the image, the others at a random point at most eps / 2 away.
        norm: The ball's norm.

    Raises:
        ValueError: If a setting is out of its range.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    norm: NormName = "Linf"

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, list(NORMS))
        for name in ("steps", "targets", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")

    @property
    def name(self) -> str:
        """Short name for tables."""
        kind = "FAB-T" if self.norm == "Linf" else f"FAB-{self.norm}-T"
        return kind + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def runs(self) -> int:
        """Number of runs: restarts times targets."""
        return self.restarts * self.targets

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        done: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found | None:
        """See :meth:`rampart.attacks.search.Search.run`."""
        norm, index = NORMS[self.norm], (~done).nonzero().squeeze(1)
        found = Found(images.clone(), done.clone())
        start = images if run % self.restarts == 0 else norm.random_start(images, eps / 2, generator)
        images, labels, adv = images[index], labels[index], start[index]
        logits, rank = logits[index], run // self.restarts
        if rank >= logits.shape[1] - 1:
            return None
        target_class = ranked_class(logits, labels, rank)
        for step in range(self.steps + 1):
            # The first run starts at the images, whose logits are known.
            known = step == 0 and run % self.restarts == 0
            across = misclassified(logits if known else predict(model, adv), labels)
            if bool(across.any()):
                fooled = across & (norm.length(adv - images) <= norm.safe_radius(images, eps))
                found.adv[index[fooled]] = adv[fooled]
                found.done[index[fooled]] = True
                index, images, labels, target_class, adv, across = (
                    x[~fooled] for x in (index, images, labels, target_class, adv, across)
                )
                if len(index) == 0:
                    break
                # Fooled, but outside the ball: continue from a point nearer to the image.
                adv[across] = images[across] + BACKWARD * (adv[across] - images[across])
            if step == self.steps:
                break
            loss = partial(_logit_difference, labels=labels, target_class=target_class)
            _, difference, grad = loss_gradient(model, adv, loss)
            from_adv, from_image = (_step_to_boundary(x, adv, difference, grad, self.norm) for x in (adv, images))
            length, radius = (norm.length(x).clamp_min(1e-8) for x in (from_adv, from_image))
            pull = (length / (length + radius)).clamp_max(LARGEST_PULL).view(-1, *[1] * (images.ndim - 1))
            adv = (1 - pull) * (adv + OVERSHOOT * from_adv) + pull * (images + OVERSHOOT * from_image)
            # NaN logits must not end an image's search.
            adv = torch.where(adv.isnan(), images, adv).clamp_(0, 1)
        return found


def _logit_difference(logits: Tensor, labels: Tensor, target_class: Tensor) -> Tensor:
    """Return the target class's logit minus the label's, ``(N,)``."""
    right, target = logits.gather(1, torch.stack([labels, target_class], 1)).unbind(1)
    return target - right


def _step_to_boundary(start: Tensor, at: Tensor, difference: Tensor, grad: Tensor, norm: NormName) -> Tensor:
    """Return the smallest change inside the box that brings a linear logit difference to zero (section 2.1).

    Every pixel moves in the direction that closes the gap between the difference and zero: by the same amount in l-inf,
    in proportion to its slope in L2, and no further than the bound of the box. The closed gap is a piecewise linear
    function of the amount, with a kink wherever a pixel reaches its bound; the amount that closes the whole gap is
    interpolated between two kinks. If it can't be closed inside the box, all pixels move to their bounds.

    Args:
        start: ``(N, ...)``, the points to move.
        at: ``(N, ...)``, the points at which the difference was linearised.
        difference: ``(N,)``, the logit difference at these points.
        grad: ``(N, ...)``, the difference's gradient at these points.
        norm: Norm in which the change is smallest.

    Returns:
        The change, like ``start``.
    """
    slopes = grad.flatten(1)
    steepest = slopes.abs().amax(1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    # A confident network may have tiny slopes only. Scaling them does not change the result.
    slopes, difference = slopes / steepest, difference / steepest.squeeze(1)
    gap = -(difference + (slopes * (start - at).flatten(1)).sum(1))  # (N,): what the change must add
    direction = slopes.sign() * torch.where(gap >= 0, 1, -1)[:, None]
    points = start.flatten(1)
    room = torch.where(direction > 0, 1 - points, points)  # (N, D): distance to the bound
    weights = slopes.abs()
    if norm == "L2":
        room = torch.where(weights > SLOWEST, room, 0)
    # A unit of the amount moves a pixel by 1 in l-inf, by its weight in L2.
    kinks, order = (room / weights.clamp_min(SLOWEST) if norm == "L2" else room).sort(dim=1)
    rates = weights.gather(1, order)  # (N, D): gap that each pixel closes per unit
    rates = rates.square() if norm == "L2" else rates
    stopped = (rates * kinks).cumsum(1)  # closed by the pixels that have reached their bound
    moving = rates.flip(1).cumsum(1).flip(1) - rates  # closed per unit by the pixels that still move
    closed = stopped + kinks * moving  # (N, D): the gap closed when the amount is this kink
    kink = torch.searchsorted(closed, gap.abs()[:, None]).clamp_max(room.shape[1] - 1)  # (N, 1)
    before = (kink - 1).clamp_min(0)
    first = kink == 0
    base = torch.where(first, 0, closed.gather(1, before))
    amount = torch.where(first, 0, kinks.gather(1, before))
    rate = torch.where(first, rates.sum(1, keepdim=True), moving.gather(1, before))
    amount = amount + (gap.abs()[:, None] - base) / rate.clamp_min(1e-12)
    amount = amount.minimum(kinks[:, -1:])
    change = (amount * weights if norm == "L2" else amount).minimum(room)
    return (direction * change).view_as(start)
