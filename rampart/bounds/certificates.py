"""Certificates: images of which every perturbation up to an eps is proved to be classified correctly.

A bound is computed in floating point, and so is the network that it speaks of. A certificate therefore asks for more
than a negative bound on every other class's logit minus the label's: it has to be below zero by a margin, relative to
the largest bound of that image on the absolute logits. The margin is 1e-4 in float32. On the shipped MNIST weights,
float32 changes interval bounds by up to 4e-6 of that scale, and logits by up to 2e-7. Images within the margin on
either side of zero are bounded again in float64; there the margin, 1e-5, is left for the rounding of the network's own
logits. The box is widened by what evaluations allow adversarial images for rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rampart.bounds.crown import crown_worst_logits
from rampart.bounds.interval_rules import NoBoundError
from rampart.bounds.propagation import interval_logits
from rampart.kernels import full_float32, widen_for_rounding

Method: TypeAlias = Literal["IBP", "CROWN-IBP"]

MARGIN = 1e-4
"""Least distance of a float32 bound from zero, relative to the bounds on the image's logits."""
MARGIN_FLOAT64 = 1e-5
"""The same for bounds in float64: the rounding of the float32 network that is certified."""
PROBES = 8
"""Images by which the network's rounding is measured."""
CHUNK = 250
"""Images bounded at once, which limits memory."""
SHARE = 10
"""CROWN-IBP keeps the bounds of all layers in memory, so it bounds only this fraction, 1 / 10, of a chunk at once."""


class _Bound(NamedTuple):
    """Upper bounds ``(N, C)`` on logits minus the label's, and bounds ``(N,)`` on the absolute logits."""

    worst: Tensor
    scale: Tensor


def _bound_by_intervals(network: nn.Module, images: Tensor, labels: Tensor, eps: Tensor) -> _Bound:
    logits = interval_logits(network, images, eps)
    return _Bound(logits.worst_logits(labels), torch.maximum(logits.lower.abs(), logits.upper.abs()).amax(1))


def _bound_by_crown(network: nn.Module, images: Tensor, labels: Tensor, eps: Tensor) -> _Bound:
    """Take the smaller of both bounds for each class, since neither is always the smaller one."""
    logits = interval_logits(network, images, eps, trace=True)
    worst = torch.minimum(logits.worst_logits(labels), crown_worst_logits(logits, labels))
    return _Bound(worst, torch.maximum(logits.lower.abs(), logits.upper.abs()).amax(1))


BOUNDS: dict[Method, Callable[[nn.Module, Tensor, Tensor, Tensor], _Bound]] = {
    "IBP": _bound_by_intervals,
    "CROWN-IBP": _bound_by_crown,
}
"""Methods, the cheapest first. Each is used for the images that those before it leave open."""

METHODS: tuple[Method, ...] = tuple(BOUNDS)


def certified_mask(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    *,
    active: Tensor | None = None,
    methods: Sequence[Method] = METHODS,
    chunk: int = CHUNK,
) -> Tensor:
    """Return a mask of the images that no perturbation up to eps can make the network misclassify.

    The clean image is one of them. An image that is not certified may be robust all the same. Computed without a graph,
    without autocast and TF32; see :mod:`rampart.bounds.certificates` for rounding.

    Args:
        network: A network in eval mode, of operations with a rule; see :class:`rampart.bounds.Interval`.
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        eps: Radius in l-inf on the pixel scale, at least 0; or one per image, ``(N,)``.
        active: ``(N,)``, bool: the images to certify; the others count as not certified. All if None.
        methods: Bounds to use, each for the images that those before it leave open.
        chunk: Images bounded at once.

    Returns:
        ``(N,)``, bool.

    Raises:
        NoBoundError: If the network has an operation without a rule; the message names the layer.
        TypeError: If the network does not return an interval.
        ValueError: If the network, or a part of it, is in train mode, or an eps is below 0.
    """
    _check_mode(network)
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    sizes = _per_image(eps, labels)
    if not bool((sizes >= 0).all()):
        raise ValueError(f"eps must be at least 0, got {sizes.min().item():g}")
    sizes = widen_for_rounding(sizes)
    certified = torch.zeros_like(labels, dtype=torch.bool)
    left = torch.ones_like(certified) if active is None else active.clone()
    with torch.no_grad(), full_float32(images.device.type):
        rounding = _measure_rounding(network, images[left.nonzero().squeeze(1)[:PROBES]])
        for method in methods:
            at_once = chunk if method == "IBP" else math.ceil(chunk / SHARE)
            rows_left = left.nonzero().squeeze(1)
            for start in range(0, len(rows_left), at_once):
                rows = rows_left[start : start + at_once]
                certified[rows] = _certify(BOUNDS[method], network, images[rows], labels[rows], sizes[rows], rounding)
            left &= ~certified
    return certified


def certified_radii(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    max_eps: float | Tensor = 1.0,
    *,
    min_eps: float | Tensor = 0.0,
    tolerance: float = 1 / 1024,
    active: Tensor | None = None,
    methods: Sequence[Method] = METHODS,
    chunk: int = CHUNK,
) -> Tensor:
    """Find the largest eps at which each image is certified, by bisection.

    An image that is certified at one eps is certified at every smaller one, since the larger box contains the smaller.
    CROWN-IBP's bounds can be larger for a smaller box all the same: then the search may end at a smaller eps.

    Args:
        network: As for :func:`certified_mask`.
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        max_eps: Radius at which the search ends; or one per image, ``(N,)``. It is not tried itself.
        min_eps: Radius at which the images are known to be certified; or one per image, ``(N,)``.
        tolerance: Largest distance of the result from the largest eps that the bounds certify.
        active: ``(N,)``, bool: the images to search; the result for the others is ``min_eps``. All if None.
        methods: Bounds to use.
        chunk: Images bounded at once.

    Returns:
        ``(N,)``, float64: an eps at which the image is certified; ``min_eps`` if there is none above it.

    Raises:
        ValueError: If ``tolerance`` is not above 0. Also raises the errors of :func:`certified_mask`.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance:g}")
    low, high = _per_image(min_eps, labels), _per_image(max_eps, labels)
    active = torch.ones_like(labels, dtype=torch.bool) if active is None else active
    width = (high - low)[active].max().item() if bool(active.any()) else 0.0
    for _ in range(math.ceil(math.log2(max(width / tolerance, 1.0)))):
        searched, middle = active & (high - low > tolerance), (low + high) / 2
        certified = certified_mask(network, images, labels, middle, active=searched, methods=methods, chunk=chunk)
        low, high = torch.where(certified, middle, low), torch.where(searched & ~certified, middle, high)
    return low


class _Float64(nn.Module):
    """A network that computes with float64 copies of its parameters and buffers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.tensors = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}

    def forward(self, images: Any) -> Any:
        return functional_call(self.network, self.tensors, (images,))


def _measure_rounding(network: nn.Module, images: Tensor) -> float:
    """Return the largest difference between logits in float32 and float64; 0 if it can't be measured."""
    some = images[: (len(images) + 1) // 2]
    exact = _bound_in_float64(_compute_logits, network, some) if len(some) else None
    return 0.0 if exact is None else float((_compute_logits(network, images)[: len(some)] - exact).abs().max())


def _compute_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits, computed like bounds."""
    return interval_logits(network, images, 0.0).bounds.middle


def _bound_in_float64(bound: Callable[..., Any], network: nn.Module, images: Tensor, *rest: Tensor) -> Any:
    """Return what ``bound(network, images, *rest)`` returns in float64; None if the network can't compute in it."""
    try:
        return bound(_Float64(network), images.double(), *rest)
    except torch.OutOfMemoryError:
        raise
    except (NoBoundError, RuntimeError):  # It converts images to float32, or has tensors that are no buffers.
        return None


def _certify(
    bound: Callable[..., _Bound], network: nn.Module, images: Tensor, labels: Tensor, eps: Tensor, rounding: float
) -> Tensor:
    """Return a mask of the images that one method certifies, ``(N,)``, bool."""
    distance = _in_margins(bound(network, images, labels, eps), labels, MARGIN, 100 * rounding)
    certified = distance < -1
    near = (distance.abs() <= 1).nonzero().squeeze(1)
    if len(near):
        again = _bound_in_float64(bound, network, images[near], labels[near], eps[near])
        if again is not None:
            certified[near] = _in_margins(again, labels[near], MARGIN_FLOAT64, 10 * rounding) < -1
    return certified


def _in_margins(bound: _Bound, labels: Tensor, margin: float, least: float) -> Tensor:
    """Return the largest bound over the other classes in units of the margin; NaN where a bound is not finite."""
    others = bound.worst.scatter(1, labels[:, None], -torch.inf).amax(1)
    unit = (margin * bound.scale).clamp_min(max(least, torch.finfo(others.dtype).tiny))
    return (others / unit).where(bound.worst.isfinite().all(1) & bound.scale.isfinite(), torch.nan)


def _per_image(value: float | Tensor, labels: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=labels.device).expand(len(labels))


def _check_mode(network: nn.Module) -> None:
    if any(module.training for module in network.modules()):
        raise ValueError(f"certificates are for networks in eval mode, got {type(network).__name__} in train mode")
