"""Projected gradient descent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rampart.attacks.attack import Attack, keep_active
from rampart.attacks.context import BatchNormMode, Model, attack_context
from rampart.attacks.eps import Eps, NormName, parse_number, to_fraction
from rampart.attacks.input_gradient import loss_gradient_of_weights
from rampart.attacks.losses import LOSSES, AttackLoss, LossName, ReferenceLoss, describe_loss, get_reference
from rampart.attacks.norms import NORMS
from rampart.attacks.pgd_run import PGDRunner
from rampart.attacks.starts import AtImage, Start, Uniform
from rampart.attacks.steps import Step, StepSchedule, plan_steps
from rampart.attacks.validation import check_choice, check_labels, read_inputs
from rampart.attacks.worst_iterate import WorstIterate


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """PGD (Madry et al. 2018, section 2.1), with settings for its variants in the literature.

    ``PGD(steps=1, relative_step_size=1.0, start=AtImage())`` is FGSM (Goodfellow et al. 2015).

    Attributes:
        norm: The ball's norm.
        steps: Number of gradient steps (0 returns the starting point), or ``"paper"`` for int(2.5 eps / step_size),
            the rule of Shaeiri et al. 2020, in exact arithmetic (their floats give 44 steps at eps 0.18, the rule
            45). The rule gives no step if eps < 0.4 step_size.
        step_size: Step length on the pixel scale, such as ``0.01`` or ``"2/255"``.
        relative_step_size: Step length as a multiple of eps. Give at most one of the two; with neither, it is
            2.5 eps / steps, the proportion that Madry et al. chose.
        step_schedule: ``"constant"``, or ``"linear"``: step k of n (from zero) has 1 - k / n of the length. A network
            trained at a large eps is flat around the images, so short steps find no gradient there. Long first steps
            leave these regions (the reason why APGD starts with steps of 2 eps; Croce and Hein 2020).
        start: Starting point of each run: ``Uniform()``, ``AtImage()`` or ``Level(low, high)``.
        restarts: Number of runs. The result of the worst run is returned per image: one that fooled the model, or else
            the one with the highest loss.
        iterate: Return the ``"last"`` iterate of a run, or its ``"best"``: one that fooled the model, or else the one
            with the highest loss.
        stop_when_fooled: End the search for an image with the first iterate that fools the model, and continue with
            the other images of the batch. For evaluations: it gives the robust accuracy of ``iterate="best"`` at a
            lower cost. On an accelerator every tenth step waits for the device. Needs ``batchnorm="eval"``.
        loss: The loss to maximise, a name or a function ``(logits, labels) -> (N,)``.
        batchnorm: Mode of BatchNorm during the attack; see :func:`rampart.attacks.context.attack_context`.

    Raises:
        ValueError: If a setting is out of its range or two settings exclude each other.
    """

    norm: NormName = "Linf"
    steps: int | Literal["paper"] = 40
    step_size: Eps | None = None
    relative_step_size: float | str | None = None
    step_schedule: StepSchedule = "constant"
    start: Start = field(default=Uniform())
    restarts: int = 1
    iterate: Literal["last", "best"] = "last"
    stop_when_fooled: bool = False
    loss: LossName | AttackLoss = "cross_entropy"
    batchnorm: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, list(NORMS))
        check_choice("step_schedule", self.step_schedule, ["constant", "linear"])
        check_choice("iterate", self.iterate, ["last", "best"])
        check_choice("batchnorm", self.batchnorm, ["eval", "train", "train_and_update"])
        if not callable(self.loss):
            check_choice("loss", self.loss, list(LOSSES))
        if self.steps != "paper" and (not isinstance(self.steps, int) or self.steps < 0):
            raise ValueError(f"steps must be a whole number from 0 or 'paper', got {self.steps!r}")
        if not isinstance(self.start, Start):
            raise ValueError(f"start must be Uniform(), AtImage() or Level(low, high), got {self.start!r}")
        if not isinstance(self.restarts, int) or self.restarts < 1:
            raise ValueError(f"restarts must be a whole number from 1, got {self.restarts!r}")
        if self.stop_when_fooled and self.batchnorm != "eval":
            raise ValueError(
                f"stop_when_fooled needs batchnorm 'eval', got {self.batchnorm!r}: statistics move as a batch shrinks"
            )
        if self.step_size is not None and self.relative_step_size is not None:
            raise ValueError("step_size and relative_step_size exclude each other: give one of them")
        if self.steps == "paper" and self.step_size is None and self.relative_step_size is None:
            raise ValueError("steps 'paper' follows from the step: give step_size or relative_step_size")
        for name in ("step_size", "relative_step_size"):
            value = getattr(self, name)
            if value is not None and parse_number(value, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    @property
    def name(self) -> str:
        """Short name for tables, such as ``PGD-200`` or ``PGD-40x10`` with ten restarts."""
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        kind = "PGD" if self.norm == "Linf" else f"PGD-{self.norm}"
        steps = "paper" if self.steps == "paper" else f"{self.steps}"
        return f"{kind}-{steps}{restarts}"

    @property
    def starts_at_images(self) -> bool:
        return isinstance(self.start, AtImage)

    @property
    def drops_fooled_images(self) -> bool:
        return self.stop_when_fooled

    def steps_at(self, eps: float) -> int:
        """Return the number of gradient steps per run at this eps."""
        if self.steps != "paper":
            return self.steps
        step_size = to_fraction(self.step_size_at(eps))
        return int(to_fraction(2.5) * to_fraction(eps) / step_size) if step_size else 0

    def step_size_at(self, eps: float) -> float:
        """Return the length of the first step at this eps, on the pixel scale; with constant steps, of every step."""
        if self.step_size is not None:
            return parse_number(self.step_size, "step_size")
        if self.relative_step_size is not None:
            return parse_number(self.relative_step_size, "relative_step_size") * eps
        assert self.steps != "paper"
        return 2.5 * eps / max(self.steps, 1)

    def step_gradient(self, grad: Tensor, step: int, eps: float, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return the gradient that a step follows, like ``grad``: ``grad`` itself, unless a subclass changes it.

        Args:
            grad: ``(N, ...)``, gradient of each image's loss with respect to its pixels.
            step: Zero-based number of the step, below ``steps_at(eps)``.
            eps: Radius on the pixel scale.
            generator: Source of random numbers, on the images' device; the global one if None.
        """
        return grad

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
        initial: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Search the ball around each image for the point where the model's loss is highest.

        The model is not changed (see ``batchnorm`` for the exception), and gradients of its weights are not computed.
        The result is inside the ball and the box [0, 1], even if the model returns NaN. At ``eps = 0`` the images are
        returned unchanged.

        Args:
            model: Maps images to logits ``(N, C)``.
            images: ``(N, ...)``, float32 or float64, in [0, 1].
            labels: ``(N,)``, int64, in [0, C).
            eps: Radius on the pixel scale.
            generator: Source of random numbers, on the images' device; the global one if None.
            initial: Points at which every run starts, of the shape of ``images``; ``start`` chooses them if None.
            active: ``(N,)``, bool, the images to attack; see :func:`rampart.attacks.attack_active`. If ``batchnorm`` is
                not ``"eval"``, images depend on one another: all are attacked, and the active results are returned.

        Returns:
            Adversarial images, like ``images`` in shape and dtype, without a graph.

        Raises:
            TypeError, ValueError: See :func:`rampart.attacks.validation.read_inputs`.
        """
        images, labels, eps = read_inputs(self.norm, model, images, labels, eps, generator, active)
        if eps == 0 or len(images) == 0 or (active is not None and not bool(active.any())):
            return images
        with attack_context(model, self.batchnorm, images.device.type):
            initial = None if initial is None else initial.detach().clone()
            adv = self._run_all(model, images, labels, eps, generator, initial, active)
            return adv if active is None else keep_active(adv, images, active)

    def with_weight_gradient(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        weights: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Attack, and compute the weights' gradient of the last step's loss in the same backward pass.

        The adversarial images and the number of forward passes are those of :meth:`__call__`.

        Args:
            model: Maps images to logits ``(N, C)``.
            images: ``(N, ...)``, float32 or float64, in [0, 1].
            labels: ``(N,)``, int64, in [0, C).
            eps: Radius on the pixel scale.
            weights: Parameters of the model.
            generator: Source of random numbers, on the images' device; the global one if None.

        Returns:
            The adversarial images, and for each weight the gradient of the mean loss at the last but one iterate; None
            if the loss does not depend on the weight or no step is made.

        Raises:
            TypeError: If the attack has several runs, stops when fooled or does not return its last iterate.
            ValueError: See :meth:`__call__`.
        """
        if self.restarts > 1 or self.iterate != "last" or self.stop_when_fooled:
            raise TypeError(f"with_weight_gradient needs a PGD of one run that returns its last iterate, got {self}")
        images, labels, eps = read_inputs(self.norm, model, images, labels, eps, generator)
        steps = self._steps(eps)
        if eps == 0 or len(images) == 0 or not steps:
            return self(model, images, labels, eps, generator), (None,) * len(weights)
        with attack_context(model, self.batchnorm, images.device.type):
            runner = self._runner(model, eps, generator, steps[:-1])
            ball, reference = runner.norm.ball(images, eps), get_reference(self.loss)
            adv = runner.run(self._begin(images, eps, generator, None), labels, ball, reference).adv
            for weight in weights:
                weight.requires_grad_()  # The context froze them, and restores their flags.
            loss = partial(self._loss, labels=labels, check=len(steps) == 1)
            grad, gradients = loss_gradient_of_weights(model, adv, loss, weights)
            grad = self.step_gradient(grad, steps[-1].number, eps, generator)
            change = runner.norm.steepest_step(grad, steps[-1].length)
            return runner.norm.clip_(change.add_(adv), ball), gradients

    def _run_all(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: float,
        generator: torch.Generator | None,
        initial: Tensor | None,
        active: Tensor | None,
    ) -> Tensor:
        """Make all runs, and return the worst results; anything for images that are not active."""
        runner = self._runner(model, eps, generator, self._steps(eps))
        ball, reference = runner.norm.ball(images, eps), get_reference(self.loss)
        inactive = None if active is None or self.batchnorm != "eval" else ~active
        if inactive is None and self.stop_when_fooled:
            inactive = torch.zeros_like(labels, dtype=torch.bool)
        worst: WorstIterate | None = None
        for _ in range(self.restarts):
            # Starts are computed for all images, so no image's start depends on which others are fooled.
            begin = self._begin(images, eps, generator, initial)
            done = inactive
            if inactive is not None:
                done = inactive | worst.fooled if worst is not None and self.stop_when_fooled else inactive.clone()
            run = runner.run(begin, labels, ball, reference, done)
            if worst is None:
                worst = run
            else:
                worst.keep(run.adv, run.fooled, run.loss, None if done is None else ~done)
        assert worst is not None
        return worst.adv

    def _begin(self, images: Tensor, eps: float, generator: torch.Generator | None, initial: Tensor | None) -> Tensor:
        norm = NORMS[self.norm]
        return self.start.point(images, eps, norm, generator) if initial is None else norm.project(initial, images, eps)

    def _runner(self, model: Model, eps: float, generator: torch.Generator | None, steps: Sequence[Step]) -> PGDRunner:
        changed = type(self).step_gradient is not PGD.step_gradient
        loss = self.loss
        return PGDRunner(
            model,
            NORMS[self.norm],
            loss.compare if isinstance(loss, ReferenceLoss) else self._loss,
            describe_loss(loss),
            steps,
            best=self.iterate == "best",
            restarts=self.restarts,
            stop=self.stop_when_fooled,
            step_gradient=(lambda grad, step: self.step_gradient(grad, step, eps, generator)) if changed else None,
        )

    def _steps(self, eps: float) -> list[Step]:
        return plan_steps(self.steps_at(eps), self.step_size_at(eps), self.step_schedule)

    def _loss(self, logits: Tensor, labels: Tensor, check: bool = False) -> Tensor:
        if check:
            check_labels(labels, logits)
        loss_function = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        return loss_function(logits, labels)
