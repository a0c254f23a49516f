"""Faster implementations of layers, and the floating-point precision of evaluations, with torch alone."""
