"""Bounds of auto_LiRPA (github.com/Verified-Intelligence/auto_LiRPA) beside Rampart's, on the same boxes in float64."""

import importlib
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.certificate_checks.bounds import BOUNDS

AGREEMENT = 1e-4  # Largest difference of a bound, relative to the largest bound of the same image.


def find_oracle() -> Any:
    """Return the module auto_LiRPA, or None if it can't be imported."""
    try:
        return importlib.import_module("auto_LiRPA")
    except ImportError:
        return None


def compare_bounds(
    oracle: Any, network: nn.Module, lower: Tensor, upper: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """Bound boxes by each method, with Rampart and with the oracle.

    Args:
        oracle: The module auto_LiRPA.
        network: Maps inputs ``(N, ...)`` to logits ``(N, C)``; not changed.
        lower: ``(N, ...)``, lower bounds of the inputs.
        upper: Upper bounds, likewise.
        labels: ``(N,)``, int64.

    Returns:
        One row per method, with the largest relative difference and the number of certified boxes of both.
    """
    network, lower, upper = deepcopy(network).double(), lower.double(), upper.double()
    rows = []
    for method, bound in BOUNDS.items():
        with torch.no_grad():
            ours = bound(network, lower, upper, labels)
        theirs = bound_by_oracle(oracle, method, network, lower, upper, labels)
        scale = torch.maximum(ours.abs(), theirs.abs()).amax(1, keepdim=True)
        rows.append(
            {
                "method": method,
                "version": f"auto_LiRPA {oracle.__version__}",
                "boxes": len(labels),
                "relative_difference": ((ours - theirs).abs() / scale).max().item(),
                "certified": _count_certified(ours, labels),
                "certified by auto_LiRPA": _count_certified(theirs, labels),
            }
        )
    return rows


def bound_by_oracle(
    oracle: Any, method: str, network: nn.Module, lower: Tensor, upper: Tensor, labels: Tensor
) -> Tensor:
    """Return the oracle's upper bounds on each class's logit minus the label's, ``(N, C)``."""
    with torch.no_grad():
        classes = network(lower[:1]).shape[1]
        unit = torch.eye(classes, dtype=lower.dtype)
        bounded = oracle.BoundedModule(network, torch.empty_like(lower[:1]))
        box = oracle.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
        inputs = oracle.BoundedTensor((lower + upper) / 2, box)
        margins = unit[None] - unit[labels][:, None]  # (N, C, C)
        _, worst = bounded.compute_bounds(x=(inputs,), C=margins, method=method, bound_lower=method == "IBP")
    result: Tensor = worst
    return result


def find_disagreements(rows: list[dict[str, Any]]) -> list[str]:
    """List rows whose bounds differ by more than ``AGREEMENT``, or whose certified numbers differ."""
    return [
        f"{row['network']}, {row['method']}: differs from auto_LiRPA by {row['relative_difference']:.2g}, "
        f"{row['certified']} certified against {row['certified by auto_LiRPA']}"
        for row in rows
        if not row["relative_difference"] <= AGREEMENT or row["certified"] != row["certified by auto_LiRPA"]
    ]


def _count_certified(worst: Tensor, labels: Tensor) -> int:
    return int((worst.scatter(1, labels[:, None], float("-inf")).amax(1) < 0).sum())
