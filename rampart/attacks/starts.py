"""Starting points of a PGD run: random, the image, or the nearest point to a gray level."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.attacks.norms import Norm
from rampart.attacks.random import draw_uniform


class Start(ABC):
    """Interface of starting points."""

    @abstractmethod
    def point(self, images: Tensor, eps: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
        """Return the starting points, inside the ball and the box [0, 1].

        Args:
            images: ``(N, ...)``, float, in [0, 1].
            eps: Radius on the pixel scale.
            norm: The ball's norm.
            generator: Source of random numbers, on the images' device; the global one if None.

        Returns:
            A new tensor like ``images``.
        """


@dataclass(frozen=True)
class Uniform(Start):
    """Start at a uniform random point of the ball (Madry et al. 2018, section 2.1), a new one for each restart."""

    def point(self, images: Tensor, eps: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
        return norm.random_start(images, eps, generator)


@dataclass(frozen=True)
class AtImage(Start):
    """Start at the image itself. It uses no random numbers, so every restart gives the same result."""

    def point(
        self,
        images: Tensor,
        eps: float,  # noqa: ARG002 - the interface of Start
        norm: Norm,  # noqa: ARG002
        generator: torch.Generator | None,  # noqa: ARG002
    ) -> Tensor:
        return images.clone()


@dataclass(frozen=True)
class Level(Start):
    """Start at the point of the ball nearest to a constant image, whose random level is drawn per image.

    Training at a large eps turns a first layer into thresholds: one just above the largest value that a black pixel
    can reach, one just below the smallest value that a white pixel can reach. Only pixels near a threshold have a
    gradient. At a random point of the ball most pixels are far from them; at mid-gray, every pixel that the attack may
    change has a gradient. Use short steps, about a tenth of eps.

    Attributes:
        low: Lowest level, in [0, 1].
        high: Highest level, in [0, 1]. ``Level(0.5, 0.5)`` starts at mid-gray.

    Raises:
        ValueError: If a level is outside [0, 1] or low is above high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"low and high of the start must be levels in [0, 1] with low <= high, got {self.low} and {self.high}"
            )

    def point(self, images: Tensor, eps: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
        shape = (len(images), *[1] * (images.ndim - 1))
        level = draw_uniform(shape, images, generator)  # (N, 1, ..., 1)
        return norm.project((self.low + (self.high - self.low) * level).expand_as(images), images, eps)
