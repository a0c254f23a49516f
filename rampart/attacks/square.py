"""Square: random search over square changes, without gradients (Andriushchenko et al. 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import misclassified, predict
from rampart.attacks.losses import margin
from rampart.attacks.norms import NORMS
from rampart.attacks.search import Found, Search
from rampart.attacks.square_windows import WINDOWS, BatchRandom
from rampart.attacks.validation import check_choice

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares' area halves (section 3)


@dataclass(frozen=True)
class Square(Search):
    """Square (Andriushchenko et al. 2020, algorithms 1 to 3), the last member of AutoAttack.

    It uses no gradients, so gradient masking does not affect it. In l-inf it starts at vertical stripes of -eps and
    eps; each query changes one square in each channel to -eps or eps, and the change is kept if it raises the margin
    loss. In L2 it starts at a grid of bumps, and each query moves length from one square to another; see
    :class:`rampart.attacks.square_windows.L2Windows`. As in AutoAttack, the squares shrink after fixed numbers of
    queries, whatever ``queries`` is. Departures from the published code, which uses the same square for all images of
    a batch and never the last row and column: here each image has a different square, at any place.

    Attributes:
        queries: Number of forward passes per run, including that of the starting point.
        area: Area of the first squares as a share of the image's (p in the paper).
        restarts: Number of runs, each from a new random point.
        norm: The ball's norm.

    Raises:
        ValueError: If a setting is out of its range.
    """

    queries: int = 5000
    area: float = 0.8
    restarts: int = 1
    norm: NormName = "Linf"

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, list(NORMS))
        for name in ("queries", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if not 0 < self.area <= 1:
            raise ValueError(f"area must be above 0 and at most 1, got {self.area}")

    @property
    def name(self) -> str:
        """Short name for tables, such as ``Square-5000``."""
        kind = "Square" if self.norm == "Linf" else f"Square-{self.norm}"
        return f"{kind}-{self.queries}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def runs(self) -> int:
        """Number of runs."""
        return self.restarts

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the square that a query changes, in pixels.

        Args:
            query: Number of earlier queries, without that of the starting point.
            height: Image height in pixels.
            width: Image width in pixels.
        """
        share = self.area / 2 ** sum(query > after for after in HALVINGS)
        return WINDOWS[self.norm].side(share, height, width)

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        done: Tensor,
        eps: float,
        run: int,  # noqa: ARG002 - runs differ only in their random numbers
        generator: torch.Generator | None,
    ) -> Found:
        """See :meth:`rampart.attacks.search.Search.run`. Images are ``(N, C, H, W)``."""
        if images.ndim != 4:
            raise ValueError(f"Square needs images of shape (N, C, H, W), got {tuple(images.shape)}")
        windows, (height, width) = WINDOWS[self.norm], images.shape[2:]
        active = (~done).nonzero().squeeze(1)
        random = BatchRandom(generator, len(images), active)
        found = Found(images.clone(), done.clone())
        images, labels = images[active], labels[active]
        adv = trial = windows.start(images, eps, random)
        best_loss = torch.full_like(labels, -torch.inf, dtype=images.dtype)
        for query in range(self.queries):
            logits = predict(model, trial)
            fooled = misclassified(logits, labels)
            loss = margin(logits, labels).to(best_loss.dtype)
            better = (loss > best_loss) | fooled
            best_loss = torch.where(better, loss, best_loss)
            adv = torch.where(better.view(-1, 1, 1, 1), trial, adv)
            if bool(fooled.any()):
                found.adv[random.active[fooled]] = adv[fooled]
                found.done[random.active[fooled]] = True
                left = ~fooled
                random.active, images, labels, adv, best_loss = (
                    x[left] for x in (random.active, images, labels, adv, best_loss)
                )
                if len(images) == 0:
                    return found
            if query + 1 < self.queries:
                trial = windows.move(adv, images, eps, self.side(query, height, width), random)
        found.adv[random.active] = adv
        return found
