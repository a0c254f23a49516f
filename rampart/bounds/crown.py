"""CROWN-IBP: bounds on the margins by one backward pass of linear bounds through the operations of an interval."""

import torch
from torch import Tensor

from rampart.bounds.crown_rules import pass_back, weigh
from rampart.bounds.interval import Interval
from rampart.bounds.trace import Operation, list_operations
from rampart.kernels import full_float32

CHUNK_ELEMENTS = 2**26  # Coefficients per chunk of rows at the largest layer: 256 MiB in float32.


def crown_worst_logits(interval: Interval, labels: Tensor) -> Tensor:
    """Return upper bounds on each class's logit minus the label's logit, over all images in the box, by CROWN-IBP.

    The difference of two logits is bounded by a linear function of each layer in turn, from the last to the box, where
    it is replaced by its largest value (Zhang et al. 2020, section 3.2). Interval bounds serve as the bounds of each
    nonlinear operation's input, so the box is the clipped one. The linear bounds of :mod:`rampart.bounds.crown_rules`
    apply; operations without one are replaced by their interval bounds.

    No bound of the two kinds is always the smaller one: take the elementwise minimum with
    :meth:`Interval.worst_logits`. A larger box can have a smaller bound of this kind, since slopes are chosen by the
    bounds. Computed without autocast and TF32, whatever the settings. Differentiable; without gradients, the pass runs
    on some of the classes at a time to save memory.

    Args:
        interval: ``(N, C)``, the logits, computed with ``trace=True``.
        labels: ``(N,)``, int64, in [0, C).

    Returns:
        ``(N, C)``, 0 for the label.

    Raises:
        ValueError: If the interval has no trace.
    """
    if interval.operation is None:
        raise ValueError("CROWN-IBP needs the operations that led to an interval: compute it with trace=True")
    operations, with_gradient = list_operations(interval.operation), torch.is_grad_enabled()
    images, classes = interval.shape
    # Inference mode rules out the vector-Jacobian products that the rules use.
    with torch.inference_mode(False), torch.set_grad_enabled(with_gradient), full_float32(interval.device.type):
        others = (labels + torch.arange(1, classes, device=labels.device)[:, None]) % classes  # (C - 1, N)
        largest = max(operation.bounds.lower.numel() for operation in operations)
        chunk = max(1, classes if with_gradient else CHUNK_ELEMENTS // max(1, largest))
        bounds = [_bound_differences(operations, some, labels) for some in others.split(chunk) if some.numel()]
        worst = interval.lower.new_zeros(images, classes)
        return worst.scatter(1, others.T, torch.cat(bounds).T) if bounds else worst


def _bound_differences(operations: list[Operation], classes: Tensor, labels: Tensor) -> Tensor:
    """Return upper bounds ``(K, N)`` on the logits of these classes ``(K, N)`` minus the labels'."""
    logits = operations[-1].bounds.lower
    rows = logits.new_zeros(*classes.shape, logits.shape[1])
    rows = rows.scatter(2, classes[:, :, None], 1.0).scatter(2, labels.expand_as(classes)[:, :, None], -1.0)
    pending = {operations[-1]: rows}
    total = logits.new_zeros(classes.shape)
    for operation in reversed(operations):  # each after all operations that take its result
        if operation not in pending:
            continue
        rows = pending.pop(operation)
        passed = pass_back(operation, rows)
        if passed is None:  # the box, or no linear bounds
            lower, upper = operation.bounds
            total = total + weigh(rows.clamp(min=0), upper) + weigh(rows.clamp(max=0), lower)
            continue
        total = total + passed.constant
        for before, share in zip(operation.inputs, passed.rows, strict=True):
            pending[before] = pending[before] + share if before in pending else share
    return total
