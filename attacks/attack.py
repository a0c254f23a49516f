"""What the rest of the repository knows of an attack, and an attack with the eps it is run at."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.context import Model
from attacks.eps import Eps, NormName, parse_eps


class Attack(ABC):
    """Immutable settings that, called, return adversarial images; :class:`attacks.PGD` is one."""

    norm: NormName

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""

    def settings(self) -> dict[str, Any]:
        """The class and every setting, in plain values, for a report."""
        fields: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        plain = {name: getattr(value, "__qualname__", value) for name, value in fields.items()}
        return {"class": type(self).__qualname__, "norm": self.norm, **plain}

    @abstractmethod
    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return adversarial images inside the ball of radius ``eps`` and the box [0, 1].

        Args:
            model: Maps images to logits ``(N, C)``.
            images: ``(N, ...)``, float32 or float64, in [0, 1].
            labels: ``(N,)``, int64, in [0, C).
            eps: Radius on the pixel scale.
            generator: Source of the random draws, on the images' device; the global one if None.
        """


@dataclass(frozen=True)
class NamedAttack:
    """An attack at one eps, as a row of a results table.

    Attributes:
        attack: The attack.
        eps: Radius on the pixel scale, such as ``0.3`` or ``"8/255"``.
        name: Row title; by default the attack's name and eps, such as ``PGD-200 @ 0.3``.

    Raises:
        ValueError: If eps is out of the norm's range.
    """

    attack: Attack
    eps: Eps
    name: str = ""

    def __post_init__(self) -> None:
        parse_eps(self.eps, self.attack.norm)
        if not self.name:
            object.__setattr__(self, "name", f"{self.attack.name} @ {self.eps}")

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Run the attack at its eps; see :meth:`Attack.__call__`."""
        return self.attack(model, images, labels, self.eps, generator=generator)
