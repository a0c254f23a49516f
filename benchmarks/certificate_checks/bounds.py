"""Bounds on margins over boxes of inputs, by method, without the safety margins of certificates."""

from collections.abc import Callable

from torch import Tensor, nn

from rampart.bounds import box_logits
from rampart.bounds.crown import crown_worst_logits

WorstLogits = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def bound_by_ibp(network: nn.Module, lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
    """Return IBP's upper bounds on each class's logit minus the label's, ``(N, C)``, over boxes ``(N, ...)``."""
    return box_logits(network, lower, upper).worst_logits(labels)


def bound_by_crown_ibp(network: nn.Module, lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
    """Return CROWN-IBP's upper bounds on each class's logit minus the label's, ``(N, C)``, over boxes ``(N, ...)``."""
    return crown_worst_logits(box_logits(network, lower, upper, trace=True), labels)


BOUNDS: dict[str, WorstLogits] = {"IBP": bound_by_ibp, "CROWN-IBP": bound_by_crown_ibp}
