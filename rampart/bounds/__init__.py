"""Bounds on a network's outputs over all images in a box, with torch alone."""

from rampart.bounds.interval import Interval, check_bounded, interval_logits

__all__ = ["Interval", "check_bounded", "interval_logits"]
