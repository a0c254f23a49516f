"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes (Croce and Hein 2020)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import loss_gradient, misclassified
from rampart.attacks.losses import LOSSES, AttackLoss, LossName, describe_loss, targeted_dlr
from rampart.attacks.norms import NORMS, Ball, Norm
from rampart.attacks.rows import ActiveRows
from rampart.attacks.search import Found, Search, ranked_class
from rampart.attacks.validation import check_choice
from rampart.kernels import Memo, StepRunner

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
        norm, target_class = NORMS[self.norm], None
        start = norm.random_start(images, eps, generator)
        if self.targets is not None:
            rank = run // self.restarts
            if rank >= logits.shape[1] - 1:
                return None
            target_class = ranked_class(logits, labels, rank)

        def step(state: _State, memo: Memo) -> None:  # noqa: ARG001 - the interface of StepRunner
            state.move(norm)
            state.evaluate(model, self._loss)

        loss = describe_loss(self.loss) if self.targets is None else "targeted DLR"
        kind = "APGD", type(norm), loss
        runner = StepRunner(model, step, kind, self.steps * self.runs, record=loss is not None)
        state = _State.begin(done, labels, target_class, norm.ball(images, eps), start, 2 * eps)
        rows = ActiveRows(runner, state, ["best", "done"])
        intervals = {point: point - before for before, point in pairwise([0, *self.checkpoints()])}
        for steps in range(-1, self.steps):  # The first evaluates the starting point.
            if not rows.any_left:
                break
            if steps in intervals:
                rows.state.halve_step_sizes(intervals[steps])
            rows.run()
        found = rows.collect()
        return Found(found["best"], found["done"])

    def _loss(self, logits: Tensor, labels: Tensor, target_class: Tensor | None) -> Tensor:
        if target_class is not None:
            return targeted_dlr(logits, labels, target_class)
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(logits, labels)


@dataclass
class _State:
    """State of each image's search, changed in place. Tensors with dimensions have one entry per image in the first.

    Attributes:
        index: ``(M,)``, int64, index of each image in the batch.
        done: ``(M,)``, bool, True for images whose best point is final.
        labels: ``(M,)``, int64.
        target_class: ``(M,)``, int64, the target classes; None for an untargeted attack.
        ball: Bounds of the points.
        adv: ``(M, ...)``, the current points.
        previous: ``(M, ...)``, the points before the last step.
        grad: ``(M, ...)``, gradient of the loss at ``adv``.
        loss: ``(M,)``, loss at ``adv``.
        best: ``(M, ...)``, the points that fool the model, or else have the highest loss so far.
        best_grad: ``(M, ...)``, gradient at ``best``.
        best_loss: ``(M,)``, loss at ``best``.
        step_size: ``(M, 1, ..., 1)``, pixel scale.
        rises: ``(M,)``, int64, number of steps since the last checkpoint that raised the loss.
        best_at_checkpoint: ``(M,)``, ``best_loss`` at the last checkpoint.
        was_halved: ``(M,)``, bool, True if the step size was halved at the last checkpoint.
        evaluated: Scalar, int64, number of points that the model has seen.
    """

    index: Tensor
    done: Tensor
    labels: Tensor
    target_class: Tensor | None
    ball: Ball
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
    evaluated: Tensor

    @classmethod
    def begin(
        cls, done: Tensor, labels: Tensor, target_class: Tensor | None, ball: Ball, adv: Tensor, step_size: float
    ) -> "_State":
        """Return the state of a batch before the first forward pass."""
        n = len(adv)
        lowest = adv.new_full((n,), -torch.inf)
        return cls(
            torch.arange(n, device=adv.device), done.clone(), labels, target_class, ball, adv,
            previous=torch.zeros_like(adv), grad=torch.zeros_like(adv), loss=-lowest,
            best=adv.clone(), best_grad=torch.zeros_like(adv), best_loss=lowest,
            step_size=adv.new_full((n, *[1] * (adv.ndim - 1)), step_size),
            rises=torch.zeros_like(labels), best_at_checkpoint=lowest.clone(),
            was_halved=torch.ones_like(done),  # no condition 2 at the first checkpoint
            evaluated=labels.new_zeros(()),
        )  # fmt: skip

    def move(self, norm: Norm) -> None:
        """Take a step: none before the starting point is evaluated, the next one without momentum."""
        plain = norm.steepest_step(self.grad, 1.0).mul_(self.step_size).add_(self.adv)
        plain = norm.clip_(plain, self.ball)
        kept = torch.sub(self.adv, self.previous, out=self.previous).mul_(MOMENTUM)
        mixed = norm.clip_((plain - self.adv).mul_(1 - MOMENTUM).add_(self.adv).add_(kept), self.ball)
        self.previous.copy_(self.adv)
        moved = torch.where(self.evaluated > 1, mixed, plain)
        torch.where(self.evaluated > 0, moved, self.adv, out=self.adv)

    def evaluate(self, model: Model, loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        """Compute loss and gradient at ``adv``, and update the best point and the number of rises.

        Args:
            model: Maps images to logits ``(M, C)``.
            loss: Function ``(logits, labels, target_class) -> (M,)``.
        """
        logits, losses, grad = loss_gradient(
            model, self.adv, lambda logits: loss(logits, self.labels, self.target_class)
        )
        losses = losses.to(self.loss.dtype).nan_to_num(nan=-torch.inf)
        fooled = misclassified(logits, self.labels)
        better = losses > self.best_loss
        self.rises.add_(losses > self.loss)
        self.loss.copy_(losses)
        self.grad.copy_(grad)
        torch.maximum(losses, self.best_loss, out=self.best_loss)
        torch.where(better.view_as(self.step_size), grad, self.best_grad, out=self.best_grad)
        keep = ((better | fooled) & ~self.done).view_as(self.step_size)
        torch.where(keep, self.adv, self.best, out=self.best)
        self.done.logical_or_(fooled)
        self.evaluated.add_(1)

    def halve_step_sizes(self, interval: int) -> None:
        """Halve the step size of images with too few rises (condition 1) or no new best loss (condition 2).

        They continue from their best point.

        Args:
            interval: Number of steps since the last checkpoint.
        """
        few_rises = self.rises <= RISES * interval
        no_new_best = ~self.was_halved & (self.best_at_checkpoint >= self.best_loss)
        stuck = few_rises | no_new_best
        rows = stuck.view_as(self.step_size)
        torch.where(rows, self.step_size / 2, self.step_size, out=self.step_size)
        torch.where(rows, self.best, self.adv, out=self.adv)
        torch.where(rows, self.best_grad, self.grad, out=self.grad)
        self.was_halved.copy_(stuck)
        self.best_at_checkpoint.copy_(self.best_loss)
        self.rises.zero_()
