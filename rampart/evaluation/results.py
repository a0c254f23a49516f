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


@dataclass(frozen=True)
class BoundStage:
    """Counts for one method of certification at one eps, tried on the images that no earlier method certified.

    Attributes:
        method: The method's name.
        eps: Pixel scale.
        tried: Number of images that were bounded.
        certified: Number of images that are certified at this eps, by this method or an earlier one, or at a larger
            eps.
        seconds: Wall time summed over batches.
    """

    method: str
    eps: float
    tried: int
    certified: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certificates of a search's images.

    Attributes:
        radius: ``(N,)``, float64: an eps up to which no perturbation makes the network misclassify the image; 0 if
            there is none, or the clean image is misclassified.
        stages: Counts per method and eps.
        seconds: Wall time of the search for radii between those of the stages.
    """

    radius: Tensor
    stages: list[BoundStage]
    seconds: float

    def count_certified(self, eps: float) -> int:
        """Return the number of images certified at an eps above 0."""
        return int((self.radius >= eps).sum())

    @classmethod
    def join(cls, parts: Sequence["Certificates"]) -> "Certificates":
        """Concatenate the certificates of several batches."""
        stages = [
            BoundStage(
                method=stages[0].method,
                eps=stages[0].eps,
                tried=sum(stage.tried for stage in stages),
                certified=sum(stage.certified for stage in stages),
                seconds=sum(stage.seconds for stage in stages),
            )
            for stages in zip(*(part.stages for part in parts), strict=True)
        ]
        return cls(torch.cat([part.radius for part in parts]), stages, sum(part.seconds for part in parts))


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
        certificates: Certificates of the images; None if the search computes none.
    """

    labels: Tensor
    clean_class: Tensor
    eps: Tensor
    attack: Tensor
    adv_class: Tensor
    stages: list[Stage]
    examples: list[Example] = field(default_factory=list, compare=False)
    certificates: Certificates | None = field(default=None, compare=False)

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
        certificates = [part.certificates for part in parts if part.certificates is not None]
        return cls(
            **tensors,
            stages=stages,
            examples=choose_examples(e for part in parts for e in part.examples),
            certificates=Certificates.join(certificates) if certificates else None,
        )


def choose_examples(examples: Iterable[Example]) -> list[Example]:
    """Return the first and the last ``MAX_EXAMPLES`` examples, in the order of eps, attack and index."""
    ordered = sorted(examples, key=lambda example: (example.eps, example.attack, example.index))
    return ordered[:MAX_EXAMPLES] + ordered[MAX_EXAMPLES:][-MAX_EXAMPLES:]
