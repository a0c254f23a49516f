"""Bounds of a network's outputs over a box of images, with torch alone."""

from rampart.bounds.interval import Interval, check_bounded, interval_logits

__all__ = ["Interval", "check_bounded", "interval_logits"]
