"""The result of a worst-case search, image by image and in sum."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_EXAMPLES = 10  # examples of a kind


@dataclass(frozen=True)
class Stage:
    """An attack at an eps, on the images that all stages before it left robust.

    Attributes:
        attack: The attack's name.
        eps: Pixel scale.
        attacked: Number of images that it attacked.
        robust: Number of images that were robust afterwards.
        seconds: Wall time of its batches, added up, whenever and wherever they were made.
    """

    attack: str
    eps: float
    attacked: int
    robust: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, eq=False)
class Example:
    """An image that was fooled, for the figures.

    Attributes:
        index: Zero-based index of the image in the data set.
        eps: At which it was fooled.
        attack: The number of the attack that fooled it.
        image: The image, without a batch dimension.
        adv: The fooling image.
    """

    index: int
    eps: float
    attack: int
    image: Tensor
    adv: Tensor


@dataclass(frozen=True)
class WorstCase:
    """Per-image results of a search.

    Attributes:
        labels: ``(N,)``, int64.
        clean_class: ``(N,)``, int64: the predictions for the clean images.
        eps: ``(N,)``, float64: the smallest eps of the grid at which the image was fooled; 0 where its clean image is
            misclassified, infinity where it is robust throughout.
        attack: ``(N,)``, int64: the number of the attack that fooled it; -1 where none did.
        adv_class: ``(N,)``, int64: the prediction for the fooling image, or for the clean one where there is none.
        stages: In the order in which they ran.
        examples: The first and the last :data:`MAX_EXAMPLES` fooled images, in the order of eps, attack and index.
    """

    labels: Tensor
    clean_class: Tensor
    eps: Tensor
    attack: Tensor
    adv_class: Tensor
    stages: list[Stage]
    examples: list[Example] = field(default_factory=list, compare=False)

    def count_robust(self, eps: float) -> int:
        """Number of images that are correctly classified both clean and under every attack up to ``eps``."""
        return int((self.eps > eps).sum())

    @classmethod
    def join(cls, parts: Sequence["WorstCase"]) -> "WorstCase":
        """Join parts that went through the same attacks."""
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
    """Keep the first and the last :data:`MAX_EXAMPLES`, in the order of eps, attack and index."""
    ordered = sorted(examples, key=lambda example: (example.eps, example.attack, example.index))
    return ordered[:MAX_EXAMPLES] + ordered[MAX_EXAMPLES:][-MAX_EXAMPLES:]
