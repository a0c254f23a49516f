"""Runs of PGD, on all images of a batch at the same time."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.input_gradient import loss_gradient, misclassified, predict
from rampart.attacks.norms import Ball, Norm, per_image
from rampart.attacks.rows import ActiveRows
from rampart.attacks.steps import Step
from rampart.attacks.validation import check_classes
from rampart.attacks.worst_iterate import WorstIterate
from rampart.kernels import Memo, StepRunner

RowLoss = Callable[..., Tensor]
"""A loss ``(logits (M, C), labels (M,), *reference) -> (M,)``."""

StepGradient = Callable[[Tensor, int], Tensor]
"""A function of a step's gradient ``(M, ...)`` and its zero-based number, which returns the gradient to follow."""


@dataclass
class PGDState:
    """Points of a run, and all that a step needs to move them.

    Attributes:
        adv: ``(M, ...)``, the current points.
        labels: ``(M,)``, int64.
        ball: Bounds of the points.
        step_size: Scalar, pixel scale.
        reference: Tensors of the loss, with one entry per point.
        worst: The worst points so far; None if only the last points are needed.
    """

    adv: Tensor
    labels: Tensor
    ball: Ball
    step_size: Tensor
    reference: tuple[Tensor, ...]
    worst: WorstIterate | None


@dataclass
class PGDRows(PGDState):
    """Points of a run that moves only some images of a batch.

    Attributes:
        index: ``(M,)``, int64, zero-based index of each point's image in the batch.
        done: ``(M,)``, bool, True for points that are not moved any more.
    """

    index: Tensor
    done: Tensor


@dataclass(frozen=True)
class PGDRunner:
    """Runs PGD on one batch, once per restart.

    Attributes:
        model: Maps images to logits.
        norm: Norm of the ball and of the steps.
        loss: The loss to maximise.
        kind: Everything that decides what a step does; None if that is not known, so that steps are not recorded.
        steps: The steps of each run.
        best: Keep the worst of all points, not only the last.
        restarts: Number of runs; with more than one, the loss of the last points is computed.
        stop: Stop moving a point once it fools the model.
        step_gradient: Function that changes the gradient of a step; None for the gradient itself.
    """

    model: Model
    norm: Norm
    loss: RowLoss
    kind: Hashable
    steps: Sequence[Step]
    best: bool = False
    restarts: int = 1
    stop: bool = False
    step_gradient: StepGradient | None = None

    def run(
        self, adv: Tensor, labels: Tensor, ball: Ball, reference: tuple[Tensor, ...], done: Tensor | None = None
    ) -> WorstIterate:
        """Make one run on a batch.

        Args:
            adv: ``(N, ...)``, the starting points; changed in place.
            labels: ``(N,)``, int64.
            ball: Bounds of the points.
            reference: Tensors of the loss, with one entry per image.
            done: ``(N,)``, bool, True for images that are left out; required with ``stop``.

        Returns:
            The worst points or, if only they are needed, the last; anything for images left out. Loss and ``fooled``
            are computed if they decide between points or between runs.
        """
        kind = "PGD", type(self.norm), self.kind, self.best, self.stop
        record = self.kind is not None and self.step_gradient is None
        runner: StepRunner[Any] = StepRunner(self.model, self._step, kind, len(self.steps) * self.restarts, record)
        step_size = adv.new_full((), self.steps[0].length if self.steps else 0.0)
        if done is None:
            worst = WorstIterate.begin(adv) if self.best or self.restarts > 1 else None
            runner.load(PGDState(adv, labels, ball, step_size, reference, worst))
            self._make_steps(runner, runner.run)
            self._add_last(runner.state)
            if worst is None:
                return WorstIterate.begin(runner.state.adv)
            return WorstIterate(*(tensor.clone() for tensor in runner.state.worst))
        index, worst = torch.arange(len(adv), device=adv.device), WorstIterate.begin(adv)
        rows = ActiveRows(runner, PGDRows(adv, labels, ball, step_size, reference, worst, index, done), ["worst"])
        if rows.any_left:
            self._make_steps(runner, rows.run if self.stop else runner.run)
        if rows.any_left:
            self._add_last(rows.state)
        collected: WorstIterate = rows.collect()["worst"]
        return collected

    def _make_steps(self, runner: StepRunner[Any], run: Callable[[], bool | None]) -> None:
        """Run all steps; end when ``run`` returns False, because no rows are left."""
        if runner.is_recorded:  # A replay does not check them.
            check_classes(runner.state.labels, runner.memo["classes"])
        length = self.steps[0].length if self.steps else 0.0
        for step in self.steps:
            if step.length != length:
                length = step.length
                runner.state.step_size.fill_(length)
            runner.memo["step"] = step.number
            if run() is False:
                return

    def _step(self, state: PGDState, memo: Memo) -> None:
        """Move all points that are not done by one step, in place."""

        def loss_of(logits: Tensor) -> Tensor:
            if "classes" not in memo:
                memo["classes"] = logits.shape[1]
                check_classes(state.labels, logits.shape[1])
            return self.loss(logits, state.labels, *state.reference)

        logits, loss, grad = loss_gradient(self.model, state.adv, loss_of)
        done = state.done if isinstance(state, PGDRows) else None
        if self.best or self.stop:
            assert state.worst is not None
            fooled = misclassified(logits, state.labels)
            rows = None if done is None else ~done
            state.worst.keep(state.adv, fooled, loss, rows if self.best or rows is None else rows & fooled)
            if self.stop and done is not None:
                done.logical_or_(fooled)
        grad = grad if self.step_gradient is None else self.step_gradient(grad, memo["step"])
        change = self.norm.steepest_step(grad, state.step_size)
        if done is None:
            self.norm.clip_(state.adv.add_(change), state.ball)
        else:
            moved = self.norm.clip_(change.add_(state.adv), state.ball)
            state.adv.copy_(torch.where(per_image(done, moved), state.adv, moved))

    def _add_last(self, state: PGDState) -> None:
        """Take the last points into account."""
        worst, rows = state.worst, ~state.done if isinstance(state, PGDRows) else None
        if worst is None:
            return
        if not self.best:
            last = state.adv if rows is None else torch.where(per_image(rows, state.adv), state.adv, worst.adv)
            worst.adv.copy_(last)
        if self.best or self.restarts > 1:
            logits = predict(self.model, state.adv)
            loss = self.loss(logits, state.labels, *state.reference)
            worst.keep(state.adv, misclassified(logits, state.labels), loss, rows)
