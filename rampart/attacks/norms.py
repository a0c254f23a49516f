"""Norms of perturbations, with random starts, steepest steps and projections for their l-p balls."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rampart.attacks.eps import NormName


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
    def steepest_step(self, grad: Tensor, step_size: float) -> Tensor:
        """Return the step of length ``step_size`` that raises a linear loss most; zero where ``grad`` is zero."""

    @abstractmethod
    def project(self, adv: Tensor, images: Tensor, eps: float) -> Tensor:
        """Move ``adv`` into the ball of radius ``eps`` around ``images`` and into the box [0, 1].

        The radius used is :meth:`safe_radius`, so rounding to the images' dtype leaves the result inside.
        """

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """Return the norm of each image's change; ``(N,)``."""

    @abstractmethod
    def safe_radius(self, images: Tensor, eps: float) -> float:
        """Return eps minus the largest error that rounding may add to a change of such images."""


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)


class Linf(Norm):
    """Largest absolute change of a pixel (Madry et al. 2018, section 2.1)."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = _uniform(images, generator).mul_(2).sub_(1).mul_(eps)
        return self.project(noise.add_(images), images, eps)

    def steepest_step(self, grad: Tensor, step_size: float) -> Tensor:
        return grad.sign().mul_(step_size)

    def project(self, adv: Tensor, images: Tensor, eps: float) -> Tensor:
        radius = self.safe_radius(images, eps)
        return torch.clamp(adv, images - radius, images + radius).clamp_(0, 1)

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def safe_radius(self, images: Tensor, eps: float) -> float:
        return max(eps - torch.finfo(images.dtype).eps, 0.0)


class L2(Norm):
    """Euclidean length of an image's change (Madry et al. 2018, appendix A)."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        direction = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
        flat = (images.shape[0], *[1] * (images.ndim - 1))
        uniform = torch.rand(flat, generator=generator, dtype=images.dtype, device=images.device)
        radius = eps * uniform.pow(1 / images[0].numel())
        return self.project(images + self.steepest_step(direction, 1.0).mul_(radius), images, eps)

    def steepest_step(self, grad: Tensor, step_size: float) -> Tensor:
        # Dividing by the largest entry first keeps the squares of tiny gradients from rounding to zero.
        grad = grad / _per_image(grad.abs().flatten(1).amax(1), grad).clamp_min(torch.finfo(grad.dtype).tiny)
        length = _per_image(self.length(grad), grad)
        return grad.mul_(step_size).div_(length.clamp_min(torch.finfo(grad.dtype).tiny))

    def project(self, adv: Tensor, images: Tensor, eps: float) -> Tensor:
        delta = adv - images
        length = _per_image(self.length(delta), delta)
        scale = (self.safe_radius(images, eps) / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_(max=1)
        return delta.mul_(scale).add_(images).clamp_(0, 1)

    def length(self, delta: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def safe_radius(self, images: Tensor, eps: float) -> float:
        rounding = torch.finfo(images.dtype).eps
        return max(eps * (1 - 8 * rounding) - rounding * math.sqrt(images[0].numel()), 0.0)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))  # (N,) -> (N, 1, ..., 1)


NORMS: dict[NormName, Norm] = {"Linf": Linf(), "L2": L2()}
