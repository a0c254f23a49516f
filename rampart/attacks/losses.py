"""Per-image losses that attacks maximise: ``(logits (N, C), labels (N,)) -> (N,)``."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

AttackLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss to maximise: a function ``(logits (N, C), labels (N,)) -> (N,)``."""

LossName: TypeAlias = Literal["cross_entropy", "margin", "dlr"]
"""Name of a loss of this package."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, as in Madry et al. 2018."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest wrong logit minus the right one: positive where fooled (Carlini & Wagner 2017, f6)."""
    right = logits.gather(1, labels[:, None])  # (N, 1)
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.amax(1) - right[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, independent of the logits' scale (Croce & Hein 2020, eq. 6).

    Raises:
        ValueError: If there are fewer than three classes, which the denominator needs.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least 3 classes, got {logits.shape[1]}: use 'margin'")
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2]
    return margin(logits, labels) / (spread + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, independent of the logits' scale (Croce & Hein 2020, eq. 7).

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, int64.
        targets: ``(N,)``, int64, the target classes.

    Raises:
        ValueError: If there are fewer than four classes, which the denominator needs.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least 4 classes, got {logits.shape[1]}: leave targets out")
    ordered = logits.topk(4, dim=1).values
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    right, target = logits.gather(1, torch.stack([labels, targets], 1)).unbind(1)
    return (target - right) / (spread + 1e-12)


LOSSES: dict[LossName, AttackLoss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
