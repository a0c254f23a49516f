"""Square: random search over square changes, without gradients (Andriushchenko et al. 2020)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import NormName
from rampart.attacks.input_gradient import misclassified, predict
from rampart.attacks.losses import margin
from rampart.attacks.norms import NORMS, Ball
from rampart.attacks.rows import ActiveRows
from rampart.attacks.search import Found, Search
from rampart.attacks.square_numbers import QueryNumbers
from rampart.attacks.square_windows import WINDOWS
from rampart.attacks.validation import check_choice
from rampart.kernels import Memo, StepRunner

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the squares' area halves (section 3)


@dataclass
class SquareState:
    """Points of a run, and all that a query needs.

    Attributes:
        adv: ``(M, C, H, W)``, the best points so far.
        best_loss: ``(M,)``, their loss.
        labels: ``(M,)``, int64.
        ball: See :meth:`rampart.attacks.square_windows.Windows.ball`.
        numbers: ``(M, K)``, int64, random numbers of the query.
        side: Scalar, int64, the windows' side in pixels; 0 for the first query, which changes nothing.
        index: ``(M,)``, int64, zero-based index of each point's image in the batch.
        done: ``(M,)``, bool, True for points that are not changed any more.
    """

    adv: Tensor
    best_loss: Tensor
    labels: Tensor
    ball: Ball
    numbers: Tensor
    side: Tensor
    index: Tensor
    done: Tensor


@dataclass(frozen=True)
class Square(Search):
    """Square (Andriushchenko et al. 2020, algorithms 1 to 3), the last member of AutoAttack.

    It uses no gradients, so gradient masking does not affect it. In l-inf it starts at vertical stripes of -eps and
    eps; each query changes one square in each channel to -eps or eps, and the change is kept if it raises the margin
    loss. In L2 it starts at a grid of bumps, and each query moves length from one square to another; see
    :class:`rampart.attacks.square_windows.L2Windows`. As in AutoAttack, the squares shrink after fixed numbers of
    queries, whatever ``queries`` is. Departures from the published code, which uses the same square for all images of
    a batch and never the last row and column: here each image has a different square, at any place.

    On an accelerator, a query is recorded and replayed, and the host waits for none: see
    :class:`rampart.attacks.rows.ActiveRows` and :class:`rampart.attacks.square_numbers.QueryNumbers`.

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
        logits: Tensor,  # noqa: ARG002 - Square needs no target classes
        done: Tensor,
        eps: float,
        run: int,  # noqa: ARG002 - runs differ only in their random numbers
        generator: torch.Generator | None,
    ) -> Found:
        """See :meth:`rampart.attacks.search.Search.run`. Images are ``(N, C, H, W)``."""
        if images.ndim != 4:
            raise ValueError(f"Square needs images of shape (N, C, H, W), got {tuple(images.shape)}")
        windows, (batch, channels, height, width) = WINDOWS[self.norm], images.shape
        numbers = QueryNumbers(generator, batch, windows.counts(channels), images.device)
        state = SquareState(
            adv=windows.start(images, eps, generator),
            best_loss=torch.full_like(labels, -torch.inf, dtype=images.dtype),
            labels=labels,
            ball=windows.ball(images, eps),
            numbers=labels.new_zeros(batch, sum(windows.counts(channels))),
            side=labels.new_zeros(()),
            index=torch.arange(batch, device=images.device),
            done=done.clone(),
        )
        step = partial(self._query, model)
        runner: StepRunner[SquareState] = StepRunner(model, step, ("Square", self.norm), self.queries)
        rows, side = ActiveRows(runner, state, ["adv", "done"]), 0
        for query in range(self.queries):
            if query > 0:
                if (needed := self.side(query - 1, height, width)) != side:
                    side = needed
                    rows.state.side.fill_(side)
                drawn = numbers.draw(windows.ends(side, height, width))
                torch.index_select(drawn, 0, rows.state.index, out=rows.state.numbers)
            if not rows.run():
                break
        return Found(**rows.collect())

    def _query(self, model: Model, state: SquareState, memo: Memo) -> None:
        """Make one query for all points that are not done, in place."""
        trial = WINDOWS[self.norm].move(state.adv, state.ball, state.numbers, state.side, memo)
        logits = predict(model, trial)
        fooled = misclassified(logits, state.labels)
        loss = margin(logits, state.labels).to(state.best_loss.dtype)
        better = ((loss > state.best_loss) | fooled) & ~state.done
        torch.where(better, loss, state.best_loss, out=state.best_loss)
        state.adv.lerp_(trial, better.to(trial.dtype).view(-1, 1, 1, 1))
        state.done.logical_or_(fooled)
