"""Rules of interval bound propagation: for operations of torch, the ends of their results from those of their inputs.

A rule takes an operation's arguments, with :class:`Ends` in place of the tensors that are bounded, and returns the ends
of what the operation returns for any tensors between them, up to rounding.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Function: TypeAlias = Callable[..., Any]


class NoBoundError(TypeError):
    """Raised for an operation that has no interval bound."""


class NoBoundOfAttributeError(NoBoundError, AttributeError):
    """Likewise for an attribute of tensors, so that ``hasattr`` is False."""


class Ends(NamedTuple):
    """Smallest and largest value of each element; the largest is nowhere below the smallest."""

    lower: Tensor
    upper: Tensor

    @property
    def middle(self) -> Tensor:
        """Centre of the box."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half its width, nowhere negative."""
        return (self.upper - self.lower) / 2


RULES: dict[Function, Function] = {}
RULES_IN_PLACE: dict[Function, Function] = {}  # of the same operations under the names that end in "_"
VIEWS: set[Function] = set()  # Operations whose result may share its memory with their input.

# Operations that never fall in any of the tensors that they take: each end of the result is that of the inputs.
RISING = """
    relu relu6 selu sigmoid tanh hardtanh hardsigmoid logsigmoid softsign tanhshrink softshrink hardshrink exp expm1 log
    log1p sqrt erf atan clamp clip clamp_min clamp_max maximum minimum amax amin sum mean cumsum cat concat stack where
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d clone repeat tile roll flip pad unfold index_select
    masked_fill
"""
MAY_SHARE_MEMORY = """
    view view_as reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim t expand narrow
    select chunk split tensor_split unbind __getitem__ contiguous detach to float double half bfloat16 cpu cuda
    pixel_shuffle pixel_unshuffle channel_shuffle
"""
MONOTONE = "neg negative avg_pool1d avg_pool2d avg_pool3d"  # rising or falling
AFFINE = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
AT_CORNERS = "sub subtract rsub mul multiply"  # in each of two arguments rising or falling
DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
OF_SHAPE_ALONE = """
    size dim numel nelement stride is_contiguous is_floating_point zeros_like ones_like new_zeros new_ones
"""
# Lowest points of functions that fall up to there and rise from there on.
VALLEYS = {"abs": 0.0, "square": 0.0, "silu": -1.2784645427610738, "mish": -1.1924306215820155, "hardswish": -1.5}
GELU_VALLEYS = {"none": -0.7517915246935645, "tanh": -0.7524614220710162}
REASONS = dict.fromkeys(
    ("group_norm", "layer_norm", "rms_norm", "instance_norm", "local_response_norm", "normalize"),
    "it divides by statistics of the image itself",
) | dict.fromkeys(("softmax", "log_softmax"), "it ties all outputs to one another; let the network return logits")


def pick(value: Any, end: int) -> Any:
    """Put one end in the place of Ends, also inside lists."""
    if isinstance(value, Ends):
        return value[end]
    return type(value)(pick(item, end) for item in value) if type(value) in (list, tuple) else value


def _ends(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Ends) else (value,)


def _around(middle: Tensor, radius: Tensor) -> Ends:
    return Ends(middle - radius, middle + radius)


def _rising(function: Function, *args: Any, **kwargs: Any) -> Any:
    low, high = (function(*pick(args, end), **{name: pick(x, end) for name, x in kwargs.items()}) for end in (0, 1))
    return Ends(low, high) if isinstance(low, Tensor) else tuple(map(Ends, low, high))


def _at_corners(function: Function, one: Any, other: Any, **kwargs: Any) -> Ends:
    """Bound a function that rises or falls in each of two arguments by its values at their ends."""
    corners = [function(a, b, **kwargs) for a in _ends(one) for b in _ends(other)]
    return Ends(reduce(torch.minimum, corners), reduce(torch.maximum, corners))


def _monotone(function: Function, x: Ends, *args: Any, **kwargs: Any) -> Ends:
    low, high = function(x.lower, *args, **kwargs), function(x.upper, *args, **kwargs)
    return Ends(torch.minimum(low, high), torch.maximum(low, high))


def _bent(function: Function, bend: float, x: Ends, *args: Any, **kwargs: Any) -> Ends:
    """Bound a function of each element that rises or falls on either side of one point."""
    points = (x.lower, torch.minimum(x.lower.clamp(min=bend), x.upper), x.upper)
    values = [function(point, *args, **kwargs) for point in points]
    return Ends(reduce(torch.minimum, values), reduce(torch.maximum, values))


def _affine(
    function: Function, input: Ends, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Ends:
    """Bound what is linear in the input: the middle moves, and the weights' absolute values stretch the radius."""
    middle = function(input.middle, weight, bias, *args, **kwargs)
    return _around(middle, function(input.radius, weight.abs(), None, *args, **kwargs))


def _matmul(one: Any, other: Any) -> Ends:
    if isinstance(one, Ends) and isinstance(other, Ends):
        raise NoBoundError("no interval bound for matmul of two intervals")
    if isinstance(one, Ends):
        return _around(one.middle @ other, one.radius @ other.abs())
    return _around(one @ other.middle, one.abs() @ other.radius)


def _add(one: Any, other: Any, alpha: float = 1) -> Ends:
    if alpha != 1:
        other = _at_corners(torch.mul, other, alpha) if isinstance(other, Ends) else other * alpha
    low, high = (pick(one, end) + pick(other, end) for end in (0, 1))
    return Ends(low, high)


def _div(x: Any, divisor: Any, **kwargs: Any) -> Ends:
    if isinstance(divisor, Ends):
        raise NoBoundError("no interval bound for division by an interval")
    return _at_corners(torch.div, x, divisor, **kwargs)


def _extreme(function: Function, one: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs or (args and isinstance(args[0], int)):
        name = function.__name__
        raise NoBoundError(f"no interval bound for {name} with a dimension, which returns indices too: take a{name}")
    return _rising(function, one, *args)


def _pow(x: Any, exponent: Any) -> Any:
    if not isinstance(x, Ends) or exponent not in range(1, 100):
        raise NoBoundError(f"no interval bound for pow but with a whole number from 1, got {exponent}")
    return _rising(torch.pow, x, exponent) if exponent % 2 else _bent(torch.pow, 0.0, x, exponent)


def _leaky_relu(x: Ends, negative_slope: float = 0.01) -> Ends:
    return _bent(F.leaky_relu, 0.0, x, negative_slope)


def _rrelu(x: Ends, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Ends:
    if training:
        raise NoBoundError("no interval bound for rrelu in train mode: put it into eval mode with `eval()`")
    return _leaky_relu(x, (lower + upper) / 2)


def _gelu(x: Ends, approximate: str = "none") -> Ends:
    return _bent(F.gelu, GELU_VALLEYS[approximate], x, approximate=approximate)


def _softplus(x: Ends, beta: float = 1.0, threshold: float = 20.0) -> Ends:
    if threshold < 15:  # It steps down to the straight line there, by more than rounding.
        raise NoBoundError(f"no interval bound for softplus with a threshold below 15, got {threshold}")
    return Ends(F.softplus(x.lower, beta, threshold), F.softplus(x.upper, beta, threshold))


def _threshold(x: Ends, threshold: float, value: float) -> Ends:
    if value > threshold:
        raise NoBoundError(f"no interval bound for threshold {threshold} with a value above it, got {value}")
    return Ends(F.threshold(x.lower, threshold, value), F.threshold(x.upper, threshold, value))


def _interpolate(x: Ends, *args: Any, mode: str = "nearest", **kwargs: Any) -> Any:
    if mode == "bicubic":
        raise NoBoundError("no interval bound for bicubic interpolation, which has negative weights: take bilinear")
    return _rising(F.interpolate, x, *args, mode=mode, **kwargs)


def _dropout(x: Ends, p: float = 0.5, training: bool = True) -> Ends:  # noqa: ARG001 - torch's signature
    if training:
        raise NoBoundError("no interval bound for dropout in train mode: put it into eval mode with `eval()`")
    return x


def _batch_norm(
    x: Ends,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - torch's signature
    eps: float = 1e-5,
) -> Ends:
    if training or running_mean is None or running_var is None:
        raise NoBoundError("no interval bound for BatchNorm by batch statistics: freeze it (`eval()`) before training")
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shape = (1, -1, *[1] * (x.lower.ndim - 2))
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    middle = x.middle * scale.view(shape) + shift.view(shape)
    return _around(middle, x.radius * scale.abs().view(shape))


def _register(names: str, make_rule: Callable[[Function], Function], *owners: Any) -> list[Function]:
    """Give operations of these names a rule, wherever torch offers them."""
    functions = []
    for name in names.split():
        for owner in owners or (F, torch, Tensor):
            if hasattr(owner, name):
                function = getattr(owner, name)
                functions.append(function)
                RULES[function] = make_rule(function)
                if hasattr(owner, f"{name}_"):
                    RULES_IN_PLACE[getattr(owner, f"{name}_")] = RULES[function]
    return functions


_register(RISING, lambda function: partial(_rising, function))
VIEWS.update(_register(MAY_SHARE_MEMORY, lambda function: partial(_rising, function)))
_register(MONOTONE, lambda function: partial(_monotone, function))
_register(AFFINE, lambda function: partial(_affine, function))
_register(AT_CORNERS, lambda function: partial(_at_corners, function))
_register(OF_SHAPE_ALONE, lambda function: lambda x, *args, **kwargs: function(x.lower, *args, **kwargs), torch, Tensor)
_register("max min", lambda function: partial(_extreme, function))
_register(DROPOUT, lambda _: _dropout)
for valley in VALLEYS:
    _register(valley, lambda function: partial(_bent, function, VALLEYS[function.__name__]))
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
_register("prelu elu celu", lambda function: partial(_bent, function, 0.0))
