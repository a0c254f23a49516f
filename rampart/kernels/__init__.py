"""Execution of networks: options, faster implementations of layers, and floating-point precision, with torch alone."""

from rampart.kernels.batch_norm import sync_batch_norm
from rampart.kernels.compiled import call_compiled
from rampart.kernels.convolution import can_use_pooled_convolution, pooled_convolution
from rampart.kernels.derived import DerivedWeights, derive_weights, frozen_weights
from rampart.kernels.execution import Execution, current_execution
from rampart.kernels.fast_path import can_skip_calls, is_traced_or_transformed
from rampart.kernels.folding import conv_bn
from rampart.kernels.memory_format import lay_out, lay_out_network, lay_out_state
from rampart.kernels.precision import allow_tf32, full_float32, tf32_allowed, widen_for_rounding
from rampart.kernels.ranks import count_ranks, gather_over_ranks, mean_over_ranks
from rampart.kernels.recording import Memo, StepRunner

__all__ = [
    "DerivedWeights",
    "Execution",
    "Memo",
    "StepRunner",
    "allow_tf32",
    "call_compiled",
    "can_skip_calls",
    "can_use_pooled_convolution",
    "conv_bn",
    "count_ranks",
    "current_execution",
    "derive_weights",
    "frozen_weights",
    "full_float32",
    "gather_over_ranks",
    "is_traced_or_transformed",
    "lay_out",
    "lay_out_network",
    "lay_out_state",
    "mean_over_ranks",
    "pooled_convolution",
    "sync_batch_norm",
    "tf32_allowed",
    "widen_for_rounding",
]
