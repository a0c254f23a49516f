"""Norms of perturbations, with random starts, steepest steps and projections for their l-p balls."""

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor

from rampart.attacks.eps import NormName
from rampart.attacks.random import draw_normal, draw_uniform

Ball: TypeAlias = tuple[Tensor, ...]
"""Bounds of balls: tensors with one entry per image in the first dimension, or without dimensions."""


class Norm(ABC):
    """Interface of an l-p norm and its ball. All methods work per image."""

    @abstractmethod
    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """Return a uniform random point of each image's ball, clipped to the box [0, 1].

        Args:
            images: ``(N, ...)``, float, in [0, 1].
            eps: Radius on the pixel scale.
            generator: Source of random numbers, on the images' device; the global one if None.
        """

    @abstractmethod
    def steepest_step(self, grad: Tensor, step_size: float | Tensor) -> Tensor:
        """Return the step of length ``step_size`` that raises a linear loss most; zero where ``grad`` is zero.

        Args:
            grad: ``(N, ...)``, gradient of each image's loss.
            step_size: Pixel scale; a tensor without dimensions or ``(N, 1, ..., 1)``.
        """

    @abstractmethod
    def ball(self, images: Tensor, eps: float) -> Ball:
        """Return what :meth:`clip_` needs of the balls of radius ``eps`` around images, as a tuple of tensors.

        The radius used is :meth:`safe_radius`, so rounding to the images' dtype leaves every point inside.

        Args:
            images: ``(N, ...)``, float, in [0, 1].
            eps: Radius on the pixel scale.
        """

    @abstractmethod
    def clip_(self, adv: Tensor, ball: Ball) -> Tensor:
        """Move the points ``adv``, like the images, into their balls and into the box [0, 1], in place."""

    def project(self, adv: Tensor, images: Tensor, eps: float) -> Tensor:
        """Return ``adv`` moved into the ball of radius ``eps`` around ``images`` and into the box [0, 1]."""
        return self.clip_(adv.clone(), self.ball(images, eps))

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """Return the norm of each image's change; ``(N,)``."""

    @abstractmethod
    def safe_radius(self, images: Tensor, eps: float) -> float:
        """Return eps minus the largest error that rounding may add to a change of such images."""


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    numbers = draw_uniform(images.shape, images, generator)
    # In the memory format of the images, with the same number for a pixel in every format.
    return numbers if numbers.stride() == images.stride() else torch.empty_like(images).copy_(numbers)


class Linf(Norm):
    """Largest absolute change of a pixel (Madry et al. 2018, section 2.1)."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = _uniform(images, generator).mul_(2).sub_(1).mul_(eps)
        return self.clip_(noise.add_(images), self.ball(images, eps))

    def steepest_step(self, grad: Tensor, step_size: float | Tensor) -> Tensor:
        return grad.sign().mul_(step_size)

    def ball(self, images: Tensor, eps: float) -> Ball:
        radius = self.safe_radius(images, eps)
        return (images - radius).clamp_(min=0), (images + radius).clamp_(max=1)

    def clip_(self, adv: Tensor, ball: Ball) -> Tensor:
        return adv.clamp_(*ball)

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def safe_radius(self, images: Tensor, eps: float) -> float:
        return max(eps - torch.finfo(images.dtype).eps, 0.0)


class L2(Norm):
    """Euclidean length of an image's change (Madry et al. 2018, appendix A)."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        direction = draw_normal(images.shape, images, generator)
        flat = (images.shape[0], *[1] * (images.ndim - 1))
        uniform = draw_uniform(flat, images, generator)
        radius = eps * uniform.pow(1 / images[0].numel())
        return self.project(images + self.steepest_step(direction, 1.0).mul_(radius), images, eps)

    def steepest_step(self, grad: Tensor, step_size: float | Tensor) -> Tensor:
        # Dividing by the largest entry first keeps the squares of tiny gradients from rounding to zero.
        grad = grad / per_image(grad.abs().flatten(1).amax(1), grad).clamp_min(torch.finfo(grad.dtype).tiny)
        length = per_image(self.length(grad), grad)
        return grad.mul_(step_size).div_(length.clamp_min(torch.finfo(grad.dtype).tiny))

    def ball(self, images: Tensor, eps: float) -> Ball:
        return images, images.new_full((), self.safe_radius(images, eps))

    def clip_(self, adv: Tensor, ball: Ball) -> Tensor:
        images, radius = ball
        delta = adv.sub_(images)
        length = per_image(self.length(delta), delta)
        scale = length.clamp_min_(torch.finfo(delta.dtype).tiny).reciprocal_().mul_(radius).clamp_(max=1)
        return delta.mul_(scale).add_(images).clamp_(0, 1)

    def length(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def safe_radius(self, images: Tensor, eps: float) -> float:
        rounding = torch.finfo(images.dtype).eps
        return max(eps * (1 - 8 * rounding) - rounding * math.sqrt(images[0].numel()), 0.0)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return values ``(N,)`` as ``(N, 1, ..., 1)``, to be combined with images ``like``, ``(N, ...)``."""
    return values.view(-1, *[1] * (like.ndim - 1))


NORMS: dict[NormName, Norm] = {"Linf": Linf(), "L2": L2()}
