"""Bounds on a network's outputs over all images in a box, with torch alone."""

from rampart.bounds.interval import Interval
from rampart.bounds.interval_rules import NoBoundError
from rampart.bounds.propagation import check_bounded, interval_logits

__all__ = ["Interval", "NoBoundError", "check_bounded", "interval_logits"]
