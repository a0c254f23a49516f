"""Faster implementations of layers, and the floating-point precision of evaluations, with torch alone."""

from rampart.kernels.convolution import can_use_pooled_convolution, pooled_convolution
from rampart.kernels.fast_path import can_skip_calls, is_traced_or_transformed
from rampart.kernels.precision import full_float32, tf32_allowed

__all__ = [
    "can_skip_calls",
    "can_use_pooled_convolution",
    "full_float32",
    "is_traced_or_transformed",
    "pooled_convolution",
    "tf32_allowed",
]
