"""Custom attacks for tests of objectives."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from rampart.attacks import PGD, Attack


@dataclass(frozen=True)
class OneOf(Attack):
    """An attack that chooses one of several; this one, always the first."""

    attacks: tuple[PGD, ...]
    norm: Literal["Linf"] = "Linf"
    name: str = "first"

    @property
    def starts_at_images(self) -> bool:
        """True if one of its attacks starts at the images."""
        return any(attack.starts_at_images for attack in self.attacks)

    def with_loss(self, loss: Any) -> "OneOf":
        """Return the same attack with another loss for each of its attacks."""
        return replace(self, attacks=tuple(attack.with_loss(loss) for attack in self.attacks))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the adversarial images of the first attack."""
        return self.attacks[0](*args, **kwargs)


@dataclass(frozen=True)
class Flipped(PGD):
    """A PGD whose steps use another gradient."""

    def step_gradient(self, grad: Tensor, *_: Any) -> Tensor:
        """Return the gradient, flipped from left to right."""
        return grad.flip(-1)
