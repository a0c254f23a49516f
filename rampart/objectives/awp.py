"""Adversarial weight perturbation, around any objective."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rampart.attacks import Attack, Eps, parse_eps
from rampart.attacks.losses import AttackLoss, LossName
from rampart.attacks.random import get_share
from rampart.kernels import mean_over_ranks
from rampart.objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput


@dataclass(frozen=True)
class AWP(Objective):
    """Minimise another objective's loss at the worst weights nearby, ``max_v L(w + v)`` (Wu et al. 2020, eq. 7).

    The attack runs once, at the current weights w. One step then raises the objective's loss: each trainable weight
    with two or more dimensions (those of convolutions and linear layers; no biases and no BatchNorm) moves along its
    gradient by ``gamma`` times its norm. The update uses the gradient of the loss at w + v, but starts from w: the
    network is not changed. This costs one further pass of the training loss, forward and backward.

    BatchNorm's running statistics are those of the pass at w; the pass at w + v leaves them. The authors do the
    reverse. Their weight decay acts on w + v, here it acts on w. Dropout and losses that use torch's random numbers
    draw anew at w + v, as theirs do. Processes that share a batch, as its generator says, perturb by the gradient of
    the whole batch.

    Training accuracy and logged parts are those at w, with the objective's own loss as ``adv_loss`` if it logs none.

    Attributes:
        objective: The objective whose loss is minimised; it must not use the leftover gradient.
        gamma: Norm of each weight's perturbation, relative to the weight's norm; 0.005 to 0.01 in the authors' runs.
            At 0 the objective is unchanged.
        from_eps: Perturb weights only in batches whose eps is at least this, pixel scale, such as ``"6/255"`` on a ramp
            from 4/255 to 16/255, to spare the first sixth of it. The authors wait for a number of epochs instead.

    Raises:
        ValueError: If gamma is negative. Raised by ``check`` if ``from_eps`` is out of the norm's range.
        TypeError: Raised by ``check`` and on the first batch if the objective needs more of its attack than images, as
            the leftover gradient does.
    """

    objective: Objective = field(default_factory=AdversarialTraining)
    gamma: float = 0.005
    from_eps: Eps = 0.0

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}")
        parse_eps(self.from_eps, "L2", "from_eps")

    @property
    def accumulates(self) -> bool:
        """True if the wrapped objective accumulates."""
        return self.objective.accumulates

    @property
    def certifies(self) -> bool:
        """True if the wrapped objective certifies."""
        return self.objective.certifies

    def check(self, attack: Attack, network: nn.Module) -> None:
        """See :meth:`Objective.check`."""
        parse_eps(self.from_eps, attack.norm, "from_eps")
        self.objective.check(attack, network)
        if self.gamma == 0:
            return
        try:
            self.objective.check(_Recorder(attack, None, []), network)
        except TypeError as error:
            raise TypeError(
                "AWP gives its objective the images of an attack, and nothing else of it: leave leftover_gradient out, "
                f"got {self.objective}"
            ) from error

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """See :meth:`Objective.__call__`."""
        if self.gamma == 0 or eps < parse_eps(self.from_eps, "L2"):
            return self.objective(network, images, labels, attack, eps, generator)
        found: list[_Found] = []
        random_state = None if generator is None else generator.get_state()
        with _without_float16(images.device.type):
            current = self.objective(network, images, labels, _Recorder(attack, generator, found), eps, generator)
            perturbed = _perturb_weights(network, current.loss, self.gamma, get_share(generator).processes)
        # The same function of the weights: with the same images, random numbers and statistics.
        if generator is not None and random_state is not None:
            generator.set_state(random_state)
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        tensors = {f"network.{name}": tensor for name, tensor in (perturbed | buffers).items()}
        replay = _Replay(attack, generator, iter(found))
        output: ObjectiveOutput = functional_call(
            _AtWeights(network, self.objective), tensors, (images, labels, replay, eps, generator)
        )
        parts = {"adv_loss": current.loss} | current.parts
        return ObjectiveOutput(
            output.loss, current.logits.detach(), {name: part.detach() for name, part in parts.items()}
        )


def _perturb_weights(network: nn.Module, loss: Tensor, gamma: float, processes: int) -> dict[str, Tensor]:
    """Return the perturbed weights by name, whose gradients are those of the weights.

    If several processes share the batch, the weights move along the gradient of the mean of their losses.
    """
    weights = {name: w for name, w in network.named_parameters() if w.requires_grad and w.ndim > 1}
    if not weights:
        return {}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradients = {name: grad for name, grad in zip(weights, found, strict=True) if grad is not None}
    if processes > 1 and gradients:
        gradients = dict(zip(gradients, mean_over_ranks(list(gradients.values())), strict=True))
    perturbed = {}
    for name, grad in gradients.items():
        weight = weights[name]
        length = gamma * weight.detach().norm() / grad.norm().clamp(min=torch.finfo(grad.dtype).tiny)
        perturbed[name] = weight.addcmul(grad, length)
    return perturbed


def _without_float16(device_type: str) -> AbstractContextManager[object]:
    """Disable float16 autocast, which rounds small gradients to zero, as attacks do."""
    available = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if available and torch.get_autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class _AtWeights(nn.Module):
    """An objective's loss as a function of the weights of ``network``."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, *batch: Any) -> ObjectiveOutput:
        return self.objective(self.network, *batch)


_Found = tuple[Tensor, Tensor | None]
"""The images that an attack returned, and the generator's state after it."""


class _Wrapper(Attack):
    """An attack in place of another one."""

    def __init__(self, attack: Attack, generator: torch.Generator | None, found: Any) -> None:
        self.norm, self.attack, self.generator, self.found = attack.norm, attack, generator, found

    @property
    def name(self) -> str:
        return self.attack.name

    @property
    def starts_at_images(self) -> bool:
        return self.attack.starts_at_images

    @property
    def drops_fooled_images(self) -> bool:
        return self.attack.drops_fooled_images

    def with_settings(self, *args: Any, **kwargs: Any) -> Any:
        return type(self)(self.attack.with_settings(*args, **kwargs), self.generator, self.found)

    def with_loss(self, loss: LossName | AttackLoss) -> Any:
        return type(self)(self.attack.with_loss(loss), self.generator, self.found)


class _Recorder(_Wrapper):
    """Run an attack and keep what it returns."""

    found: list[_Found]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        adv = self.attack(*args, **kwargs)
        self.found.append((adv, None if self.generator is None else self.generator.get_state()))
        return adv


class _Replay(_Wrapper):
    """Return what an attack has returned before, in the same order."""

    found: Iterator[_Found]

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        adv, state = next(self.found)
        if self.generator is not None and state is not None:
            self.generator.set_state(state)
        return adv
