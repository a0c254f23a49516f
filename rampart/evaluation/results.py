"""Results of a worst-case search: per image, and counts per attack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_EXAMPLES = 10  # kept both of the first fooled images and of the last


@dataclass(frozen=True)
class Stage:
    """Counts for one attack at one eps, run on the images that no earlier stage fooled.

    Attributes:
        attack: The attack's name.
        eps: Pixel scale.
        attacked: Number of attacked images.
        robust: Number of images that are still correctly classified after the attack.
        seconds: Wall time summed over batches, including batches of earlier runs and of other processes.
    """

    attack: str
    eps: float
    attacked: int
    robust: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, eq=False)
class Example:
    """An image and the adversarial image that fooled the model, for figures.

    Attributes:
        index: Zero-based index of the image in the data set.
        eps: Smallest eps of the grid at which an attack succeeded.
        attack: Zero-based number of that attack.
        image: Clean image, without a batch dimension.
        adv: Adversarial image.
    """

    index: int
    eps: float
    attack: int
    image: Tensor
    adv: Tensor


@dataclass(frozen=True)
class WorstCase:
    """Per-image results of a worst-case search.

    Attributes:
        labels: ``(N,)``, int64.
        clean_class: ``(N,)``, int64: predictions for the clean images.
        eps: ``(N,)``, float64: smallest eps of the grid at which an attack succeeded; 0 if the clean image is
            misclassified, infinity if no attack succeeded at any eps.
        attack: ``(N,)``, int64: zero-based number of the attack that succeeded; -1 if none did or none was needed.
        adv_class: ``(N,)``, int64: predictions for the adversarial images; for the clean image if no attack succeeded.
        stages: Counts per attack and eps, in the order of the runs.
        examples: The first and the last ``MAX_EXAMPLES`` fooled images, in the order of eps, attack and index.
    """

    labels: Tensor
    clean_class: Tensor
    eps: Tensor
    attack: Tensor
    adv_class: Tensor
    stages: list[Stage]
    examples: list[Example] = field(default_factory=list, compare=False)

    def count_robust(self, eps: float) -> int:
        """Return the number of images classified correctly both clean and under every attack up to ``eps``."""
        return int((self.eps > eps).sum())

    @classmethod
    def join(cls, parts: Sequence["WorstCase"]) -> "WorstCase":
        """Concatenate the results of several batches under the same attacks."""
        names = ("labels", "clean_class", "eps", "attack", "adv_class")
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        stages = [
            Stage(
                attack=stages[0].attack,
                eps=stages[0].eps,
                attacked=sum(stage.attacked for stage in stages),
                robust=sum(stage.robust for stage in stages),
                seconds=sum(stage.seconds for stage in stages),
            )
            for stages in zip(*(part.stages for part in parts), strict=True)
        ]
        return cls(**tensors, stages=stages, examples=choose_examples(e for part in parts for e in part.examples))


def choose_examples(examples: Iterable[Example]) -> list[Example]:
    """Return the first and the last ``MAX_EXAMPLES`` examples, in the order of eps, attack and index."""
    ordered = sorted(examples, key=lambda example: (example.eps, example.attack, example.index))
    return ordered[:MAX_EXAMPLES] + ordered[MAX_EXAMPLES:][-MAX_EXAMPLES:]
