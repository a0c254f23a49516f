"""FAB: the nearest point across the boundary, by steps onto its linear approximation (Croce and Hein 2020b)."""

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

LARGEST_PULL = 0.1  # alpha_max: how far a step may lean towards the image
OVERSHOOT = 1.05  # eta: how far beyond the linear boundary a step goes
BACKWARD = 0.9  # beta: how much of its distance a fooling point keeps
SLOWEST = 1e-12  # the slope, as a share of the image's largest, below which a pixel is left where it is


@dataclass(frozen=True)
class FAB(Search):
    """Targeted FAB (Croce and Hein 2020b, algorithm 1), the third member of AutoAttack.

    Looks for the smallest perturbation rather than for the highest loss inside the ball; the search for an image ends
    when one is not larger than eps. An image that is not fooled comes back as it is. Random starts are uniform in their
    ball, where the published code scales them to its surface.

    Attributes:
        steps: Steps of a run.
        targets: Aim at each of so many wrong classes in turn, the likeliest first. Classes beyond those there are, are
            left out.
        restarts: Runs for each target; those after the first begin at a random point, at most eps / 2 away.
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
        """Restarts, for each target."""
        return self.restarts * self.targets

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        active: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found | None:
        """See :meth:`rampart.attacks.search.Search.run`."""
        norm, index = NORMS[self.norm], active
        found = Found(images.clone(), torch.zeros_like(labels, dtype=torch.bool))
        start = images if run % self.restarts == 0 else norm.random_start(images, eps / 2, generator)
        images, labels, adv = images[active], labels[active], start[active]
        logits, rank = predict(model, images), run // self.restarts
        if rank >= logits.shape[1] - 1:
            return None
        aims = ranked_class(logits, labels, rank)
        for step in range(self.steps + 1):
            # The images themselves are known to be classified correctly.
            known = step == 0 and run % self.restarts == 0
            across = misclassified(logits if known else predict(model, adv), labels)
            if bool(across.any()):
                fooled = across & (norm.length(adv - images) <= norm.safe_radius(images, eps))
                found.adv[index[fooled]] = adv[fooled]
                found.fooled[index[fooled]] = True
                index, images, labels, aims, adv, across = (
                    x[~fooled] for x in (index, images, labels, aims, adv, across)
                )
                if len(index) == 0:
                    break
                # Beyond the ball: go on from nearer.
                adv[across] = images[across] + BACKWARD * (adv[across] - images[across])
            if step == self.steps:
                break
            _, lead, grad = loss_gradient(model, adv, partial(_lead, labels=labels, aims=aims))
            from_adv, from_image = (_onto_boundary(x, adv, lead, grad, self.norm) for x in (adv, images))
            length, radius = (norm.length(x).clamp_min(1e-8) for x in (from_adv, from_image))
            pull = (length / (length + radius)).clamp_max(LARGEST_PULL).view(-1, *[1] * (images.ndim - 1))
            adv = (1 - pull) * (adv + OVERSHOOT * from_adv) + pull * (images + OVERSHOOT * from_image)
            # Answers that are not numbers must not end an image's search.
            adv = torch.where(adv.isnan(), images, adv).clamp_(0, 1)
        return found


def _lead(logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
    """Return how far the aim is ahead of the right class."""
    right, aim = logits.gather(1, torch.stack([labels, aims], 1)).unbind(1)
    return aim - right


def _onto_boundary(start: Tensor, at: Tensor, lead: Tensor, grad: Tensor, norm: NormName) -> Tensor:
    """The smallest change inside the box that takes a point to where a linear lead is zero (section 2.1).

    The change moves every pixel in the direction that closes the gap: in l-inf by the same amount, in L2 in proportion
    to its slope, and those that meet the box's wall as far as they can. The amount is where a piecewise linear function
    of it, the gap that is closed, meets the gap; its kinks are where pixels meet the wall, in order. Where even the
    walls do not close the gap, all pixels go there.

    Args:
        start: ``(N, ...)``, the points to move.
        at: ``(N, ...)``, where the lead was linearised.
        lead: ``(N,)``, its value there.
        grad: ``(N, ...)``, its gradient there.
        norm: Of the change.

    Returns:
        The change, like ``start``.
    """
    slopes = grad.flatten(1)
    steepest = slopes.abs().amax(1, keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
    # Of a confident network all slopes may be tiny; what counts is their proportions.
    slopes, lead = slopes / steepest, lead / steepest.squeeze(1)
    gap = -(lead + (slopes * (start - at).flatten(1)).sum(1))  # (N,): what the change must add to the lead
    direction = slopes.sign() * torch.where(gap >= 0, 1, -1)[:, None]
    points = start.flatten(1)
    room = torch.where(direction > 0, 1 - points, points)  # (N, D): to the wall
    weights = slopes.abs()
    if norm == "L2":
        room = torch.where(weights > SLOWEST, room, 0)
    # A unit of the amount moves a pixel by 1 in l-inf, by its weight in L2.
    kinks, order = (room / weights.clamp_min(SLOWEST) if norm == "L2" else room).sort(dim=1)
    rates = weights.gather(1, order)  # (N, D): what a unit closes
    rates = rates.square() if norm == "L2" else rates
    stopped = (rates * kinks).cumsum(1)  # closed by the pixels that have met the wall
    moving = rates.flip(1).cumsum(1).flip(1) - rates  # what those behind them close for each unit
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
