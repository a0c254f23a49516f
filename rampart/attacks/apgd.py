"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes (Croce and Hein 2020)."""

from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import loss_gradient, misclassified
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
        targets: Number of target classes: the most likely wrong ones, attacked in turn with the targeted DLR loss
            (section 4.2 and eq. 7), at most all wrong classes. None for an untargeted attack.

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
        logits: Tensor,
        done: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found | None:
        """See :meth:`rampart.attacks.search.Search.run`."""
        norm, checkpoints = NORMS[self.norm], [0, *self.checkpoints()]
        active = (~done).nonzero().squeeze(1)
        start = norm.random_start(images, eps, generator)[active]
        found = Found(images.clone(), done.clone())
        images, labels = images[active], labels[active]
        target_class = labels
        if self.targets is not None:
            rank = run // self.restarts
            if rank >= logits.shape[1] - 1:
                return None
            target_class = ranked_class(logits[active], labels, rank)
        state = _State.begin(active, images, labels, target_class, start, 2 * eps)
        for step in range(self.steps + 1):
            loss_function = partial(self._loss, labels=state.labels, target_class=state.target_class)
            logits, loss, grad = loss_gradient(model, state.adv, loss_function)
            state.update(loss, grad)
            fooled = misclassified(logits, state.labels)
            if bool(fooled.any()):
                found.adv[state.index[fooled]] = state.adv[fooled]
                found.done[state.index[fooled]] = True
                state = state.select(~fooled)
                if len(state.index) == 0:
                    return found
            if step == self.steps:
                break
            if step > 0 and step in checkpoints:
                state.halve_step_sizes(interval=step - checkpoints[checkpoints.index(step) - 1])
            step_taken = norm.steepest_step(state.grad, 1.0).mul_(state.step_size)
            adv = norm.project(step_taken.add_(state.adv), state.images, eps)
            if step > 0:
                mixed = state.adv + (1 - MOMENTUM) * (adv - state.adv) + MOMENTUM * (state.adv - state.previous)
                adv = norm.project(mixed, state.images, eps)
            state.previous, state.adv = state.adv, adv
        found.adv[state.index] = state.best
        return found

    def _loss(self, logits: Tensor, labels: Tensor, target_class: Tensor) -> Tensor:
        if self.targets is not None:
            return targeted_dlr(logits, labels, target_class)
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(logits, labels)


@dataclass
class _State:
    """State of each image's search. The first dimension of every tensor has one entry per image.

    Attributes:
        index: ``(M,)``, int64, index of each image in the batch.
        images: ``(M, ...)``, the clean images.
        labels: ``(M,)``, int64.
        target_class: ``(M,)``, int64, the target classes; the labels of an untargeted attack.
        adv: ``(M, ...)``, the current points.
        previous: ``(M, ...)``, the points before the last step.
        grad: ``(M, ...)``, gradient of the loss at ``adv``.
        loss: ``(M,)``, loss at ``adv``.
        best: ``(M, ...)``, the points with the highest loss so far.
        best_grad: ``(M, ...)``, gradient at ``best``.
        best_loss: ``(M,)``, loss at ``best``.
        step_size: ``(M, 1, ..., 1)``, pixel scale.
        rises: ``(M,)``, int64, number of steps since the last checkpoint that raised the loss.
        best_at_checkpoint: ``(M,)``, ``best_loss`` at the last checkpoint.
        was_halved: ``(M,)``, bool, True if the step size was halved at the last checkpoint.
    """

    index: Tensor
    images: Tensor
    labels: Tensor
    target_class: Tensor
    adv: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor
    best_at_checkpoint: Tensor
    was_halved: Tensor

    @classmethod
    def begin(
        cls, index: Tensor, images: Tensor, labels: Tensor, target_class: Tensor, adv: Tensor, step_size: float
    ) -> "_State":
        """Return the state before the first forward pass."""
        lowest = images.new_full((len(images),), -torch.inf)
        return cls(
            index, images, labels, target_class, adv, previous=adv, grad=torch.zeros_like(adv), loss=-lowest,
            best=adv.clone(), best_grad=torch.zeros_like(adv), best_loss=lowest.clone(),
            step_size=images.new_full((len(images), *[1] * (images.ndim - 1)), step_size),
            rises=torch.zeros_like(labels), best_at_checkpoint=lowest,
            was_halved=torch.ones_like(labels, dtype=torch.bool),  # no condition 2 at the first checkpoint
        )  # fmt: skip

    def select(self, rows: Tensor) -> "_State":
        """Return the state of some images."""
        return _State(*(getattr(self, field.name)[rows] for field in fields(self)))

    def update(self, loss: Tensor, grad: Tensor) -> None:
        """Update the best point and the number of rises with the loss and gradient at ``adv``."""
        loss = loss.to(self.loss.dtype).nan_to_num(nan=-torch.inf)
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.grad = loss, grad
        better = loss > self.best_loss
        self.best[better], self.best_grad[better], self.best_loss[better] = self.adv[better], grad[better], loss[better]

    def halve_step_sizes(self, interval: int) -> None:
        """Halve the step size of images with too few rises (condition 1) or no new best loss (condition 2).

        They continue from their best point.

        Args:
            interval: Number of steps since the last checkpoint.
        """
        few_rises = self.rises <= RISES * interval
        no_new_best = ~self.was_halved & (self.best_at_checkpoint >= self.best_loss)
        stuck = few_rises | no_new_best
        self.step_size[stuck] /= 2
        self.adv = torch.where(stuck.view_as(self.step_size), self.best, self.adv)
        self.grad = torch.where(stuck.view_as(self.step_size), self.best_grad, self.grad)
        self.was_halved, self.best_at_checkpoint = stuck, self.best_loss.clone()
        self.rises = torch.zeros_like(self.rises)
