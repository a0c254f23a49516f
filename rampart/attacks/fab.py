"""FAB: find the nearest point across the decision boundary, by linear approximation (Croce and Hein 2020b)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import loss_gradient, misclassified, predict
from rampart.attacks.norms import NORMS, Norm, per_image
from rampart.attacks.rows import ActiveRows
from rampart.attacks.search import Found, Search, ranked_class
from rampart.attacks.validation import check_choice
from rampart.kernels import Memo, StepRunner

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
        norm, rank, from_image = NORMS[self.norm], run // self.restarts, run % self.restarts == 0
        start = images.clone() if from_image else norm.random_start(images, eps / 2, generator)
        if rank >= logits.shape[1] - 1:
            return None

        def step(state: _State, memo: Memo) -> None:  # noqa: ARG001 - the interface of StepRunner
            state.move(model, self.norm)
            state.classify(model, norm)

        radius = images.new_full((), norm.safe_radius(images, eps))
        index, target_class = torch.arange(len(images), device=images.device), ranked_class(logits, labels, rank)
        runner = StepRunner(model, step, ("FAB", type(norm)), self.steps * self.runs)
        state = _State(index, done.clone(), images, labels, target_class, start, radius)
        rows = ActiveRows(runner, state, ["adv", "done"])
        # Images that are attacked are classified correctly; random points may not be.
        left = rows.any_left and (from_image or rows.run(lambda state: state.classify(model, norm)))
        for _ in range(self.steps):
            if not left:
                break
            left = rows.run()
        found = rows.collect()
        return Found(torch.where(per_image(found["done"], images), found["adv"], images), found["done"])


@dataclass
class _State:
    """State of each image's search, changed in place. Tensors with dimensions have one entry per image in the first.

    Attributes:
        index: ``(M,)``, int64, index of each image in the batch.
        done: ``(M,)``, bool, True for images whose point is final.
        images: ``(M, ...)``, the clean images.
        labels: ``(M,)``, int64.
        target_class: ``(M,)``, int64.
        adv: ``(M, ...)``, the current points.
        radius: Scalar, largest length of a perturbation that ends the search, pixel scale.
    """

    index: Tensor
    done: Tensor
    images: Tensor
    labels: Tensor
    target_class: Tensor
    adv: Tensor
    radius: Tensor

    def classify(self, model: Model, norm: Norm) -> None:
        """End the search for images that are fooled inside the ball; move other fooling points towards the image."""
        across = misclassified(predict(model, self.adv), self.labels) & ~self.done
        change = self.adv - self.images
        inside = norm.length(change) <= self.radius
        nearer = change.mul_(BACKWARD).add_(self.images)
        torch.where(per_image(across & ~inside, nearer), nearer, self.adv, out=self.adv)
        self.done.logical_or_(across & inside)

    def move(self, model: Model, norm: NormName) -> None:
        """Step over the linear boundary, from the current points and from the images, to a mean of the two results."""
        loss = partial(_logit_difference, labels=self.labels, target_class=self.target_class)
        _, difference, grad = loss_gradient(model, self.adv, loss)
        from_adv, from_image = (
            _step_to_boundary(start, self.adv, difference, grad, norm) for start in (self.adv, self.images)
        )
        length, radius = (NORMS[norm].length(change).clamp_min(1e-8) for change in (from_adv, from_image))
        pull = per_image((length / (length + radius)).clamp_max(LARGEST_PULL), self.adv)
        moved = (1 - pull) * (self.adv + OVERSHOOT * from_adv) + pull * (self.images + OVERSHOOT * from_image)
        # NaN logits must not end an image's search.
        moved = torch.where(moved.isnan(), self.images, moved).clamp_(0, 1)
        torch.where(per_image(self.done, moved), self.adv, moved, out=self.adv)


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
