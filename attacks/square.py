"""Square: random search for squares that fool the model, with no gradient (Andriushchenko et al. 2020)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.context import Model
from attacks.gradient import misclassified, predict
from attacks.losses import margin
from attacks.norms import NORMS
from attacks.search import Found, Search

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares' area halves (section 3)


@dataclass(frozen=True)
class Square(Search):
    """Square (Andriushchenko et al. 2020, algorithms 1 and 2), l-inf, the last member of AutoAttack.

    Starts at vertical stripes of -eps and eps; each query moves one square of each channel to -eps or eps and keeps
    what lowers the right class's lead. It does not ask for gradients, so gradients that say nothing don't stop it.
    As in AutoAttack, the squares shrink after fixed numbers of queries, whatever ``queries`` is. The published code
    never places a square in the last row and column and lets all images of a batch share one square; here each image
    has its own, and every place is possible.

    Attributes:
        queries: Forward passes, the start's included.
        area: Of the first squares, as a share of the image's (p).
        restarts: Runs from new stripes.

    Raises:
        ValueError: If a setting is out of its range.
    """

    queries: int = 5000
    area: float = 0.8
    restarts: int = 1

    norm = "Linf"

    def __post_init__(self) -> None:
        for name in ("queries", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if not 0 < self.area <= 1:
            raise ValueError(f"area must be above 0 and at most 1, got {self.area}")

    @property
    def name(self) -> str:
        """Short name for tables, such as ``Square-5000``."""
        return f"Square-{self.queries}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def runs(self) -> int:
        """Restarts."""
        return self.restarts

    def side(self, query: int, height: int, width: int) -> int:
        """Side of the square that a query moves, in pixels.

        Args:
            query: Number of queries before, the start not counted.
            height: Of the image.
            width: Of the image.
        """
        area = self.area / 2 ** sum(query > after for after in HALVINGS)
        return min(max(round(math.sqrt(area * height * width)), 1), height, width)

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        active: Tensor,
        eps: float,
        run: int,  # noqa: ARG002 - all are alike
        generator: torch.Generator | None,
    ) -> Found:
        """See :meth:`attacks.search.Search.run`. Images are ``(N, C, H, W)``."""
        norm, device = NORMS["Linf"], images.device
        if images.ndim != 4:
            raise ValueError(f"Square needs images of shape (N, C, H, W), got {tuple(images.shape)}")
        batch, channels, height, width = images.shape

        def signs(*shape: int) -> Tensor:
            return torch.randint(2, shape, generator=generator, device=device).mul_(2).sub_(1).to(images.dtype)

        found = Found(images.clone(), torch.zeros_like(labels, dtype=torch.bool))
        # Drawn for the whole batch and then selected, at every query.
        stripes = signs(batch, channels, 1, width)[active]
        index, images, labels = active, images[active], labels[active]
        adv = norm.project(images + eps * stripes, images, eps)
        lead = torch.full_like(labels, -torch.inf, dtype=images.dtype)
        trial = adv
        for query in range(self.queries):
            logits = predict(model, trial)
            fooled = misclassified(logits, labels)
            loss = margin(logits, labels).to(lead.dtype)
            better = (loss > lead) | fooled
            lead = torch.where(better, loss, lead)
            adv = torch.where(better.view(-1, 1, 1, 1), trial, adv)
            if bool(fooled.any()):
                found.adv[index[fooled]] = adv[fooled]
                found.fooled[index[fooled]] = True
                left = ~fooled
                index, images, labels, adv, lead = (x[left] for x in (index, images, labels, adv, lead))
                if len(index) == 0:
                    return found
            if query + 1 == self.queries:
                break
            side = self.side(query, height, width)
            rows = _one_side(batch, height, side, generator, device)[index, None, :, None]
            columns = _one_side(batch, width, side, generator, device)[index, None, None, :]
            moved = norm.project(images + eps * signs(batch, channels, 1, 1)[index], images, eps)
            trial = torch.where(rows & columns, moved, adv)
        found.adv[index] = adv
        return found


def _one_side(n: int, size: int, side: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Which of ``size`` pixels a stretch of ``side`` covers, placed at random for each image; ``(n, size)``, bool."""
    start = torch.randint(size - side + 1, (n, 1), generator=generator, device=device)
    pixel = torch.arange(size, device=device)
    return (pixel >= start) & (pixel < start + side)
