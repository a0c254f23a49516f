"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes (Croce and Hein 2020)."""

from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import loss_gradient, misclassified, predict
from rampart.attacks.losses import LOSSES, AttackLoss, LossName, targeted_dlr
from rampart.attacks.norms import NORMS
from rampart.attacks.search import Found, Search, ranked_class
from rampart.attacks.validation import check_choice

MOMENTUM = 0.25  # 1 - alpha in section 3.1: share of the previous step that is kept
RISES = 0.75  # rho: share of steps that must raise the loss, or else the step size is halved


@dataclass(frozen=True)
class APGD(Search):
    """APGD (Croce and Hein 2020, algorithm 1), the first two members of AutoAttack.

    The step size starts at 2 eps. At checkpoints, with fewer steps between them each time, an image whose loss has not
    risen often enough returns to its best point with half the step size.

    ``APGD()`` is AutoAttack's APGD-CE, ``APGD(targets=9)`` its APGD-T. Departures from the published code: the search
    for an image ends once it is fooled, which changes no robust accuracy; runs start at a uniform random point of the
    ball, which the code scales to the surface; and the first checkpoint counts the first rise from the loss of the
    starting point, where the code counts it from zero.

    Attributes:
        norm: The ball's norm.
        steps: Gradient steps per run.
        restarts: Number of runs, each from a new random point; with targets, the number per target.
        loss: The loss to maximise, a name or a function ``(logits, labels) -> (N,)``. Don't set it with targets.
        targets: Number of target classes, the likeliest wrong ones, attacked in turn with the targeted DLR loss
            (section 4.2 and eq. 7). Capped at the number of wrong classes. None for an untargeted attack.

    Raises:
        ValueError: If a setting is out of its range; when called, if the model has fewer classes than the loss needs.
    """

    norm: NormName = "Linf"
    steps: int = 100
    restarts: int = 1
    loss: LossName | AttackLoss = "cross_entropy"
    targets: int | None = None

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, list(NORMS))
        if not callable(self.loss):
            check_choice("loss", self.loss, list(LOSSES))
        if self.targets is not None and self.loss != "cross_entropy":
            raise ValueError(f"with targets the loss is the targeted DLR loss: leave loss out, got {self.loss!r}")
        for name in ("steps", "restarts", "targets"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")

    @property
    def name(self) -> str:
        """Short name for tables, such as ``APGD-CE`` or ``APGD-T``."""
        if self.targets is not None:
            kind = "T"
        else:
            kind = {"cross_entropy": "CE", "margin": "margin", "dlr": "DLR"}.get(str(self.loss), "custom")
        norm = "" if self.norm == "Linf" else f"-{self.norm}"
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"APGD{norm}-{kind}{restarts}"

    def with_loss(self, loss: LossName | AttackLoss) -> "APGD":
        """See :meth:`rampart.attacks.Attack.with_loss`.

        Raises:
            TypeError: If there are targets, whose loss is fixed.
        """
        if self.targets is not None:
            raise TypeError(
                "APGD with targets maximises the targeted DLR loss, which can't be replaced: leave targets out"
            )
        return replace(self, loss=loss)

    @property
    def runs(self) -> int:
        """Number of runs: restarts times targets."""
        return self.restarts * (self.targets or 1)

    def checkpoints(self) -> list[int]:
        """Return the step counts after which step sizes may be halved (section 3.2), in whole steps as published."""
        interval, least, shrink = (max(int(share * self.steps), 1) for share in (0.22, 0.06, 0.03))
        points = []
        step = interval
        while step <= self.steps:
            points.append(step)
            interval = max(interval - shrink, least)
            step += interval
        return points

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
        norm, checkpoints = NORMS[self.norm], [0, *self.checkpoints()]
        start = norm.random_start(images, eps, generator)[active]
        found = Found(images.clone(), torch.zeros_like(labels, dtype=torch.bool))
        images, labels = images[active], labels[active]
        aims = labels
        if self.targets is not None:
            logits = predict(model, images)
            rank = run // self.restarts
            if rank >= logits.shape[1] - 1:
                return None
            aims = ranked_class(logits, labels, rank)
        now = _Climb.begin(active, images, labels, aims, start, 2 * eps)
        for step in range(self.steps + 1):
            logits, loss, grad = loss_gradient(model, now.adv, partial(self._loss, labels=now.labels, aims=now.aims))
            now.update(loss, grad)
            fooled = misclassified(logits, now.labels)
            if bool(fooled.any()):
                found.adv[now.index[fooled]] = now.adv[fooled]
                found.fooled[now.index[fooled]] = True
                now = now.select(~fooled)
                if len(now.index) == 0:
                    return found
            if step == self.steps:
                break
            if step > 0 and step in checkpoints:
                now.shorten(interval=step - checkpoints[checkpoints.index(step) - 1])
            step_taken = norm.steepest_step(now.grad, 1.0).mul_(now.length)
            adv = norm.project(step_taken.add_(now.adv), now.images, eps)
            if step > 0:
                mixed = now.adv + (1 - MOMENTUM) * (adv - now.adv) + MOMENTUM * (now.adv - now.previous)
                adv = norm.project(mixed, now.images, eps)
            now.previous, now.adv = now.adv, adv
        found.adv[now.index] = now.best
        return found

    def _loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        if self.targets is not None:
            return targeted_dlr(logits, labels, aims)
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(logits, labels)


@dataclass
class _Climb:
    """State of each image's search. The first dimension of every tensor is that of the images."""

    index: Tensor
    images: Tensor
    labels: Tensor
    aims: Tensor
    adv: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    length: Tensor
    rises: Tensor
    best_at_checkpoint: Tensor
    was_shortened: Tensor

    @classmethod
    def begin(cls, index: Tensor, images: Tensor, labels: Tensor, aims: Tensor, adv: Tensor, length: float) -> "_Climb":
        """Return the state before the first forward pass."""
        lowest = images.new_full((len(images),), -torch.inf)
        return cls(
            index, images, labels, aims, adv, previous=adv, grad=torch.zeros_like(adv), loss=-lowest, best=adv.clone(),
            best_grad=torch.zeros_like(adv), best_loss=lowest.clone(),
            length=images.new_full((len(images), *[1] * (images.ndim - 1)), length),
            rises=torch.zeros_like(labels), best_at_checkpoint=lowest,
            was_shortened=torch.ones_like(labels, dtype=torch.bool),  # no condition 2 at the first checkpoint
        )  # fmt: skip

    def select(self, rows: Tensor) -> "_Climb":
        """Return the state of some images."""
        return _Climb(*(getattr(self, field.name)[rows] for field in fields(self)))

    def update(self, loss: Tensor, grad: Tensor) -> None:
        """Update the best point and the number of rises with the loss and gradient at ``adv``."""
        loss = loss.to(self.loss.dtype).nan_to_num(nan=-torch.inf)
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.grad = loss, grad
        better = loss > self.best_loss
        self.best[better], self.best_grad[better], self.best_loss[better] = self.adv[better], grad[better], loss[better]

    def shorten(self, interval: int) -> None:
        """Return images with too few rises (condition 1) or no new best (condition 2) to their best; halve their steps.

        Args:
            interval: Number of steps since the last checkpoint.
        """
        seldom = self.rises <= RISES * interval
        not_at_all = ~self.was_shortened & (self.best_at_checkpoint >= self.best_loss)
        stuck = seldom | not_at_all
        self.length[stuck] /= 2
        self.adv = torch.where(stuck.view_as(self.length), self.best, self.adv)
        self.grad = torch.where(stuck.view_as(self.length), self.best_grad, self.grad)
        self.was_shortened, self.best_at_checkpoint = stuck, self.best_loss.clone()
        self.rises = torch.zeros_like(self.rises)
