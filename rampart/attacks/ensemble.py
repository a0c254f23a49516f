"""Several attacks as one, such as PGD on the cross-entropy and PGD on the margin."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rampart.attacks.attack import Attack, attack_active
from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import misclassified, predict
from rampart.attacks.random import derive_generator
from rampart.attacks.search import Found, Search


@dataclass(frozen=True)
class Ensemble(Search):
    """Attacks in turn, each on the images that the earlier ones did not fool.

    The result for an image that none of them fools is that of the last attack. Each attack has its own random numbers,
    so an image's result does not depend on the other images.

    Attributes:
        attacks: The attacks, of one norm; the one that fools most images for its cost first.

    Raises:
        ValueError: If there are no attacks, or they differ in their norms.
    """

    attacks: tuple[Attack, ...]
    norm: NormName = field(init=False, repr=False)

    def __post_init__(self) -> None:
        norms = {attack.norm for attack in self.attacks}
        if len(norms) != 1:
            found = f"norms {', '.join(sorted(norms))}" if norms else "none"
            raise ValueError(f"attacks must be at least one attack, all of one norm, got {found}")
        object.__setattr__(self, "norm", norms.pop())

    @property
    def name(self) -> str:
        """Names of the attacks, such as ``PGD-20 + PGD-20``."""
        return " + ".join(attack.name for attack in self.attacks)

    @property
    def runs(self) -> int:
        """Number of attacks."""
        return len(self.attacks)

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,  # noqa: ARG002
        done: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found:
        """Run one of the attacks; see :meth:`rampart.attacks.search.Search.run`."""
        if generator is not None:
            generator = derive_generator(generator, "ensemble", run)
        adv = attack_active(self.attacks[run], model, images, labels, eps, generator, ~done)
        return Found(adv, done | misclassified(predict(model, adv), labels))
