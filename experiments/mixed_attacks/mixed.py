"""A random choice among several PGDs for each batch."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rampart.attacks import PGD, Attack, AttackLoss, Eps, LossName, Model, NormName
from rampart.attacks.random import get_share


@dataclass(frozen=True)
class MixedPGD(Attack):
    """Attack for training that runs one of several PGDs, chosen at random, on each batch.

    A network learns to be robust to the one attack that it is trained with. After training with one step length, the
    same attack with another length fools more images; the same holds for blocks of pixels.

    Attributes:
        attacks: Attacks of one norm, chosen with equal probability.
        steps: Number of steps of every attack; if None, each attack keeps its own.

    Raises:
        ValueError: If there is no attack, or their norms differ.
    """

    attacks: tuple[PGD, ...]
    steps: int | None = None

    def __post_init__(self) -> None:
        norms = {attack.norm for attack in self.attacks}
        if len(norms) != 1:
            got = ", ".join(sorted(norms)) or "none"
            raise ValueError(f"attacks must be at least one and of one norm, got {got}")
        if self.steps is not None:
            object.__setattr__(self, "attacks", tuple(replace(attack, steps=self.steps) for attack in self.attacks))

    @property
    def norm(self) -> NormName:  # type: ignore[override]
        """Norm of all attacks."""
        return self.attacks[0].norm

    @property
    def name(self) -> str:
        """Short name for tables, such as ``one of PGD-4, PGD-10``."""
        return f"one of {', '.join(dict.fromkeys(attack.name for attack in self.attacks))}"

    @property
    def starts_at_images(self) -> bool:
        """True if one of the attacks starts at the images."""
        return any(attack.starts_at_images for attack in self.attacks)

    @property
    def drops_fooled_images(self) -> bool:
        """True if one of the attacks stops when fooled."""
        return any(attack.drops_fooled_images for attack in self.attacks)

    def with_settings(self, steps: int | Literal["paper"] | None = None, step_size: Eps | None = None) -> "MixedPGD":
        """See :meth:`rampart.attacks.Attack.with_settings`: the steps of every attack; each keeps its own step size.

        Raises:
            TypeError: If a step size is given, which would make the attacks alike.
            ValueError: If the steps are out of their range.
        """
        if step_size is not None:
            raise TypeError(
                f"MixedPGD has a step size for each of its {len(self.attacks)} attacks, got step_size {step_size} for "
                "all: leave it out, or give the attacks relative_step_size"
            )
        return replace(self, attacks=tuple(attack.with_settings(steps) for attack in self.attacks), steps=None)

    def with_loss(self, loss: LossName | AttackLoss) -> "MixedPGD":
        """See :meth:`rampart.attacks.Attack.with_loss`: the loss of every attack."""
        return replace(self, attacks=tuple(attack.with_loss(loss) for attack in self.attacks))

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`rampart.attacks.PGD.__call__`; the choice of the attack does not depend on ``active``."""
        whole = get_share(generator).generator  # one choice for all processes
        drawn = torch.randint(len(self.attacks), (), generator=whole, device=images.device)
        return self.attacks[int(drawn)](model, images, labels, eps, generator=generator, active=active)
