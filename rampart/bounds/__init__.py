"""Bounds on a network's outputs over all images in a box, with torch alone."""

from rampart.bounds.certificates import Method, certified_mask, certified_radii
from rampart.bounds.crown import crown_worst_logits
from rampart.bounds.interval import Interval
from rampart.bounds.interval_rules import Bounds, NoBoundError
from rampart.bounds.propagation import box_logits, check_bounded, interval_logits, uses_batch_statistics
from rampart.bounds.trace import Operation, list_operations, list_relu_inputs

__all__ = [
    "Bounds",
    "Interval",
    "Method",
    "NoBoundError",
    "Operation",
    "box_logits",
    "certified_mask",
    "certified_radii",
    "check_bounded",
    "crown_worst_logits",
    "interval_logits",
    "list_operations",
    "list_relu_inputs",
    "uses_batch_statistics",
]
