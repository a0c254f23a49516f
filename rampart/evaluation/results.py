"""The result of a worst-case search, image by image and in sum."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHOWN = 10  # examples of a kind


@dataclass(frozen=True)
class Stage:
    """An attack at an eps, on the images that all stages before it left robust.

    Attributes:
        attack: The attack's name.
        eps: Pixel scale.
        attacked: Number of images that it attacked.
        standing: Number of images that were robust afterwards.
        seconds: Wall time of its batches, added up, whenever and wherever they were made.
    """

    attack: str
    eps: float
    attacked: int
    standing: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, eq=False)
class Example:
    """An image that was fooled, for the figures.

    Attributes:
        place: Its number in the set, from zero.
        eps: At which it was fooled.
        attack: The number of the attack that fooled it.
        image: The image, without a batch dimension.
        adv: The fooling image.
    """

    place: int
    eps: float
    attack: int
    image: Tensor
    adv: Tensor


@dataclass(frozen=True)
class WorstCase:
    """Per-image results of a search.

    Attributes:
        labels: ``(N,)``, int64.
        clean: ``(N,)``, int64: the predictions for the clean images.
        eps: ``(N,)``, float64: the smallest eps of the grid at which the image was fooled; 0 where its clean image is
            misclassified, infinity where it is robust throughout.
        attack: ``(N,)``, int64: the number of the attack that fooled it; -1 where none did.
        adv_class: ``(N,)``, int64: the prediction for the fooling image, or for the clean one where there is none.
        stages: In the order in which they ran.
        examples: Of the fooled images the first :data:`SHOWN` and the last, in the order of eps, attack and place.
    """

    labels: Tensor
    clean: Tensor
    eps: Tensor
    attack: Tensor
    adv_class: Tensor
    stages: list[Stage]
    examples: list[Example] = field(default_factory=list, compare=False)

    def standing(self, eps: float) -> int:
        """Number of images that are correctly classified both clean and under every attack up to ``eps``."""
        return int((self.eps > eps).sum())

    @classmethod
    def of(cls, parts: Sequence["WorstCase"]) -> "WorstCase":
        """Join parts that went through the same attacks."""
        names = ("labels", "clean", "eps", "attack", "adv_class")
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        stages = [
            Stage(
                attack=stages[0].attack,
                eps=stages[0].eps,
                attacked=sum(stage.attacked for stage in stages),
                standing=sum(stage.standing for stage in stages),
                seconds=sum(stage.seconds for stage in stages),
            )
            for stages in zip(*(part.stages for part in parts), strict=True)
        ]
        return cls(**tensors, stages=stages, examples=choose_examples(e for part in parts for e in part.examples))


def choose_examples(examples: Iterable[Example]) -> list[Example]:
    """Keep the first and the last :data:`SHOWN`, in the order of eps, attack and place."""
    ordered = sorted(examples, key=lambda example: (example.eps, example.attack, example.place))
    return ordered[:SHOWN] + ordered[SHOWN:][-SHOWN:]
