"""Per-image losses that attacks maximise: ``(logits (N, C), labels (N,)) -> (N,)``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
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


class ReferenceLoss(ABC):
    """A loss that compares the logits with tensors that belong to the clean images, such as their logits.

    Attacks on several rows of a batch pass the rows of these tensors. Called as a function, as by custom attacks, it
    is a loss ``(logits, labels) -> (N,)`` of the whole batch.
    """

    @abstractmethod
    def reference(self) -> tuple[Tensor, ...]:
        """Return the tensors, with one entry per image in the first dimension; called inside the attack."""

    @abstractmethod
    def compare(self, logits: Tensor, labels: Tensor, *reference: Tensor) -> Tensor:
        """Return the loss of each row, ``(M,)``.

        Args:
            logits: ``(M, C)``.
            labels: ``(M,)``, int64.
            reference: Rows of the tensors that :meth:`reference` returns.
        """

    @property
    def kind(self) -> Hashable:
        """Everything but the tensors that decides the values; None if there may be more, such as a random state."""
        return None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each image of the whole batch, ``(N,)``."""
        return self.compare(logits, labels, *self.reference())


def get_reference(loss: LossName | AttackLoss) -> tuple[Tensor, ...]:
    """Return the tensors with which a loss compares the logits; none for an ordinary loss."""
    return loss.reference() if isinstance(loss, ReferenceLoss) else ()


def describe_loss(loss: LossName | AttackLoss) -> Hashable:
    """Return what decides a loss's values, as part of the kind of a step; None if that is not known.

    Named losses are known, and functions that refer to nothing but their arguments, modules, classes and other
    functions. A function that is defined anew for each batch is the same loss.
    """
    if isinstance(loss, ReferenceLoss):
        return loss.kind
    if not isinstance(loss, FunctionType):
        return loss if isinstance(loss, str) else None
    defaults = *(loss.__defaults__ or ()), *(loss.__kwdefaults__ or {}).values()
    if loss.__closure__ or not all(value is None or isinstance(value, _CONSTANT) for value in defaults):
        return None
    used = (loss.__globals__[name] for name in _list_names(loss.__code__) if name in loss.__globals__)
    return (loss.__module__, loss.__code__, defaults) if all(isinstance(value, _CODE) for value in used) else None


_CODE = (ModuleType, type, FunctionType, BuiltinFunctionType)
_CONSTANT = (bool, int, float, str)


def _list_names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes in a function's code, and in that of functions inside it."""
    inside = (_list_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inside)
