"""Rules of interval bound propagation: bounds on the results of torch's operations, given bounds on their inputs.

A rule takes an operation's arguments, with :class:`Bounds` in place of bounded tensors, and returns bounds on the
operation's result for all tensors between them, up to rounding.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.bounds.batch_norm import BatchNormArguments
from rampart.kernels.batch_norm import normalise_by, sync_batch_norm

Function: TypeAlias = Callable[..., Any]


class NoBoundError(TypeError):
    """Raised for an operation that has no interval bound."""


class NoBoundOfAttributeError(NoBoundError, AttributeError):
    """Raised for a tensor's attribute that has no interval bound; ``hasattr`` is then False."""


class Bounds(NamedTuple):
    """Lower and upper bound of each element; the upper bound is nowhere below the lower."""

    lower: Tensor
    upper: Tensor

    @property
    def middle(self) -> Tensor:
        """Middle of the box."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width of the box, nowhere negative."""
        return (self.upper - self.lower) / 2


RULES: dict[Function, Function] = {}
PLAIN_FORMS: dict[Function, Function] = {}  # Each in-place operation, whose name ends in "_", by its plain form.
VIEWS: set[Function] = set()  # Operations whose result may share its memory with their input.

# Operations that are nondecreasing in all their tensors: each bound of the result is the result of that bound.
INCREASING = """
    relu relu6 selu sigmoid tanh hardtanh hardsigmoid logsigmoid softsign tanhshrink softshrink hardshrink exp expm1 log
    log1p sqrt erf atan clamp clip clamp_min clamp_max maximum minimum amax amin sum mean cumsum cat concat stack where
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d clone repeat tile roll flip pad unfold index_select
    masked_fill
"""
MAY_SHARE_MEMORY = """
    view view_as reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim t expand narrow
    select chunk split tensor_split unbind __getitem__ contiguous detach to float double cpu cuda
    pixel_shuffle pixel_unshuffle channel_shuffle
"""
MONOTONE = "neg negative avg_pool1d avg_pool2d avg_pool3d"  # nondecreasing or nonincreasing
AFFINE = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
AT_CORNERS = "sub subtract rsub mul multiply"  # monotone in each of two arguments
DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
SHAPE_ONLY = """
    size dim numel nelement stride is_contiguous is_floating_point zeros_like ones_like new_zeros new_ones
"""
# Minima of functions that decrease up to there and increase from there on.
MINIMA = {"abs": 0.0, "square": 0.0, "silu": -1.2784645427610738, "mish": -1.1924306215820155, "hardswish": -1.5}
GELU_MINIMA = {"none": -0.7517915246935645, "tanh": -0.7524614220710162}
REASONS = dict.fromkeys(
    ("group_norm", "layer_norm", "rms_norm", "instance_norm", "local_response_norm", "normalize"),
    "it divides by statistics of the image",
) | dict.fromkeys(("softmax", "log_softmax"), "each output depends on all inputs; let the network return logits")


def select_end(value: Any, end: int) -> Any:
    """Replace Bounds by their lower (0) or upper (1) bound, also inside lists."""
    if isinstance(value, Bounds):
        return value[end]
    return type(value)(select_end(item, end) for item in value) if type(value) in (list, tuple) else value


def _list_ends(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Bounds) else (value,)


def _from_middle(middle: Tensor, radius: Tensor) -> Bounds:
    return Bounds(middle - radius, middle + radius)


def _increasing(function: Function, *args: Any, **kwargs: Any) -> Any:
    low, high = (
        function(*select_end(args, end), **{name: select_end(x, end) for name, x in kwargs.items()}) for end in (0, 1)
    )
    return Bounds(low, high) if isinstance(low, Tensor) else tuple(map(Bounds, low, high))


def _at_corners(function: Function, one: Any, other: Any, **kwargs: Any) -> Bounds:
    """Bound a function that is monotone in each of two arguments by its values at their bounds."""
    corners = [function(a, b, **kwargs) for a in _list_ends(one) for b in _list_ends(other)]
    return Bounds(reduce(torch.minimum, corners), reduce(torch.maximum, corners))


def _monotone(function: Function, x: Bounds, *args: Any, **kwargs: Any) -> Bounds:
    low, high = function(x.lower, *args, **kwargs), function(x.upper, *args, **kwargs)
    return Bounds(torch.minimum(low, high), torch.maximum(low, high))


def _turning(function: Function, turning_point: float, x: Bounds, *args: Any, **kwargs: Any) -> Bounds:
    """Bound an elementwise function that is monotone on either side of one point."""
    points = (x.lower, torch.minimum(x.lower.clamp(min=turning_point), x.upper), x.upper)
    values = [function(point, *args, **kwargs) for point in points]
    return Bounds(reduce(torch.minimum, values), reduce(torch.maximum, values))


def _affine(
    function: Function, input: Bounds, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Bounds:
    """Bound a function that is affine in the input: it maps the middle, and the absolute weights map the radius."""
    middle = function(input.middle, weight, bias, *args, **kwargs)
    return _from_middle(middle, function(input.radius, weight.abs(), None, *args, **kwargs))


def _matmul(one: Any, other: Any) -> Bounds:
    if isinstance(one, Bounds) and isinstance(other, Bounds):
        raise NoBoundError("no interval bound for matmul of two intervals")
    if isinstance(one, Bounds):
        return _from_middle(one.middle @ other, one.radius @ other.abs())
    return _from_middle(one @ other.middle, one.abs() @ other.radius)


def _add(one: Any, other: Any, alpha: float = 1) -> Bounds:
    if alpha != 1:
        other = _at_corners(torch.mul, other, alpha) if isinstance(other, Bounds) else other * alpha
    low, high = (select_end(one, end) + select_end(other, end) for end in (0, 1))
    return Bounds(low, high)


def _div(x: Any, divisor: Any, **kwargs: Any) -> Bounds:
    if isinstance(divisor, Bounds):
        raise NoBoundError("no interval bound for division by an interval")
    return _at_corners(torch.div, x, divisor, **kwargs)


def _max_or_min(function: Function, one: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs or (args and isinstance(args[0], int)):
        name = function.__name__
        raise NoBoundError(f"no interval bound for {name} with a dimension, which returns indices too: use a{name}")
    return _increasing(function, one, *args)


def _pow(x: Any, exponent: Any) -> Any:
    if not isinstance(x, Bounds) or exponent not in range(1, 100):
        raise NoBoundError(
            f"no interval bound for pow with an exponent that is not a whole number from 1 to 99, got {exponent}"
        )
    return _increasing(torch.pow, x, exponent) if exponent % 2 else _turning(torch.pow, 0.0, x, exponent)


def _leaky_relu(x: Bounds, negative_slope: float = 0.01) -> Bounds:
    return _turning(F.leaky_relu, 0.0, x, negative_slope)


def _rrelu(x: Bounds, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Bounds:
    if training:
        raise NoBoundError("no interval bound for rrelu in train mode: put it into eval mode with `eval()`")
    return _leaky_relu(x, (lower + upper) / 2)


def _gelu(x: Bounds, approximate: str = "none") -> Bounds:
    return _turning(F.gelu, GELU_MINIMA[approximate], x, approximate=approximate)


def _softplus(x: Bounds, beta: float = 1.0, threshold: float = 20.0) -> Bounds:
    if threshold < 15:  # At the threshold it drops to the straight line, by more than rounding.
        raise NoBoundError(f"no interval bound for softplus with a threshold below 15, got {threshold}")
    return Bounds(F.softplus(x.lower, beta, threshold), F.softplus(x.upper, beta, threshold))


def _threshold(x: Bounds, threshold: float, value: float) -> Bounds:
    if value > threshold:
        raise NoBoundError(f"no interval bound for threshold {threshold} with a value above it, got {value}")
    return Bounds(F.threshold(x.lower, threshold, value), F.threshold(x.upper, threshold, value))


def _interpolate(x: Bounds, *args: Any, mode: str = "nearest", **kwargs: Any) -> Any:
    if mode == "bicubic":
        raise NoBoundError("no interval bound for bicubic interpolation, which has negative weights: use bilinear")
    return _increasing(F.interpolate, x, *args, mode=mode, **kwargs)


def _dropout(x: Bounds, p: float = 0.5, training: bool = True) -> Bounds:  # noqa: ARG001 - torch's signature
    if training:
        raise NoBoundError("no interval bound for dropout in train mode: put it into eval mode with `eval()`")
    return x


def _batch_norm(*args: Any, **kwargs: Any) -> Bounds:
    x, mean, variance, weight, bias, training, _, eps = BatchNormArguments(*args, **kwargs)
    if training or mean is None or variance is None:
        raise NoBoundError("no interval bound for BatchNorm by batch statistics without the batch: give `clean`")
    return _normalise_by(x, mean, variance, weight, bias, eps)


def _normalise_by(
    x: Bounds, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Bounds:
    middle = normalise_by(x.middle, mean, variance, weight, bias, eps)
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    return _from_middle(middle, x.radius * scale.abs().view(1, -1, *[1] * (x.lower.ndim - 2)))


def _register(names: str, make_rule: Callable[[Function], Function], *owners: Any) -> list[Function]:
    """Register a rule for the operations of these names, wherever torch offers them; return the operations."""
    functions = []
    for name in names.split():
        for owner in owners or (F, torch, Tensor):
            if hasattr(owner, name):
                function = getattr(owner, name)
                functions.append(function)
                RULES[function] = make_rule(function)
                if hasattr(owner, f"{name}_"):
                    PLAIN_FORMS[getattr(owner, f"{name}_")] = function
    return functions


_register(INCREASING, lambda function: partial(_increasing, function))
VIEWS.update(_register(MAY_SHARE_MEMORY, lambda function: partial(_increasing, function)))
_register(MONOTONE, lambda function: partial(_monotone, function))
_register(AFFINE, lambda function: partial(_affine, function))
_register(AT_CORNERS, lambda function: partial(_at_corners, function))
_register(SHAPE_ONLY, lambda function: lambda x, *args, **kwargs: function(x.lower, *args, **kwargs), torch, Tensor)
_register("max min", lambda function: partial(_max_or_min, function))
_register(DROPOUT, lambda _: _dropout)
for name in MINIMA:
    _register(name, lambda function: partial(_turning, function, MINIMA[function.__name__]))
for names, bound in {
    "matmul mm bmm": _matmul,
    "add": _add,
    "div divide true_divide": _div,
    "pow": _pow,
}.items():
    _register(names, lambda _, bound=bound: bound)  # type: ignore[misc]
for name, bound in {
    "leaky_relu": _leaky_relu,
    "rrelu": _rrelu,
    "gelu": _gelu,
    "softplus": _softplus,
    "threshold": _threshold,
    "interpolate": _interpolate,
    "batch_norm": _batch_norm,
}.items():
    _register(name, lambda _, bound=bound: bound, F)  # type: ignore[misc]
RULES[normalise_by] = _normalise_by
RULES[sync_batch_norm] = _batch_norm
_register("prelu elu celu", lambda function: partial(_turning, function, 0.0))
