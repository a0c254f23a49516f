"""Rules of CROWN-IBP: linear upper bounds, passed back through one operation.

``rows``, ``(K, N, ...)``, are K linear functions of each image's part of an operation's result, ``(N, ...)``. A rule
returns linear functions of the operation's inputs and a constant that together are nowhere below, up to rounding:

- affine operations are transposed, which is exact;
- ReLU, leaky ReLU and clamping have an upper and a lower line (:func:`_upper_line`), chosen by the sign of each row;
- the largest element of a pooling window is at least the one with the largest lower bound. It is at most that one if no
  other element of the window can exceed it, and otherwise at most a constant.

Rules apply where each image's result depends on that image alone, and in float32 and float64.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from rampart.bounds.batch_norm import BatchNormArguments
from rampart.bounds.trace import Operation
from rampart.kernels.batch_norm import normalise_by


class Passed(NamedTuple):
    """Linear bounds after an operation was passed: a constant ``(K, N)``, and rows ``(K, N, ...)`` for each input."""

    constant: Tensor
    rows: tuple[Tensor, ...]


Rule: TypeAlias = Callable[[Operation, Tensor], Passed | None]
RULES: dict[Callable[..., Any], Rule] = {}

# Row-major: an image's part of the result is its part of the input, if both have one row of their first axis per image.
ROW_MAJOR = "view reshape flatten unflatten squeeze unsqueeze contiguous clone"
ELEMENTWISE = "add sub subtract rsub neg negative mul multiply div divide true_divide"
AFFINE = """
    conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d sum mean cumsum cat concat stack repeat tile roll flip pad unfold
    index_select masked_fill where permute transpose swapaxes swapdims movedim t expand narrow select chunk split
    tensor_split unbind __getitem__ to float double cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle interpolate
    view_as dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout matmul mm bmm
"""


def find_functions(names: str) -> set[Callable[..., Any]]:
    """Return the functions of these names, wherever torch offers them."""
    return {getattr(owner, name) for name in names.split() for owner in (F, torch, Tensor) if hasattr(owner, name)}


PRODUCTS = find_functions("mul multiply matmul mm bmm")  # affine in one argument at a time
ELEMENTWISE_FUNCTIONS = find_functions(ELEMENTWISE)
POOLINGS = find_functions("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool2d adaptive_avg_pool3d")


def pass_back(operation: Operation, rows: Tensor) -> Passed | None:
    """Bound linear functions of an operation's result by linear functions of its inputs.

    Args:
        operation: The operation; its result is ``(N, ...)``.
        rows: ``(K, N, ...)``, float32 or float64.

    Returns:
        The linear bounds, one tensor of rows for each of the operation's ``inputs``; None if no rule applies.
    """
    rule = RULES.get(operation.function) if operation.function is not None else None
    tensors = [operation.bounds.lower, *(before.bounds.lower for before in operation.inputs)]
    if rule is None or any(
        x.ndim == 0 or len(x) != rows.shape[1] or x.dtype not in (torch.float32, torch.float64) for x in tensors
    ):
        return None
    return rule(operation, rows)


def weigh(rows: Tensor, values: Tensor) -> Tensor:
    """Return the rows' values at one point per image, ``(K, N)``; rows are ``(K, N, ...)``, values ``(N, ...)``."""
    return torch.einsum("knd,nd->kn", rows.reshape(*rows.shape[:2], -1), values.reshape(len(values), -1))


def _weigh_channels(rows: Tensor, bias: Tensor | None) -> Tensor:
    """Return the rows' values at one number per channel, ``(K, N)``; rows are ``(K, N, C, ...)``."""
    if bias is None:
        return rows.new_zeros(rows.shape[:2])
    return rows.reshape(*rows.shape[:3], -1).sum(3) @ bias


def _pass_linear(operation: Operation, rows: Tensor) -> Passed | None:
    _, weight, bias = _bind(operation, "input weight bias")
    if rows.ndim < 3:  # one vector instead of a batch
        return None
    return Passed(_weigh_channels(rows.movedim(-1, 2), bias), (rows @ weight,))


def _pass_conv(operation: Operation, rows: Tensor) -> Passed | None:
    x, weight, bias, stride, padding, dilation, groups = _bind(
        operation, "input weight bias stride padding dilation groups", stride=1, padding=0, dilation=1, groups=1
    )
    if rows.ndim != weight.ndim + 1 or isinstance(padding, str):
        return _pass_affine(operation, rows)
    transpose: Callable[..., Tensor] = (conv1d_input, conv2d_input, conv3d_input)[rows.ndim - 4]
    flat, shape = rows.flatten(0, 1), x.bounds.lower.shape
    back = transpose((len(flat), *shape[1:]), weight, flat, stride, padding, dilation, groups)
    return Passed(_weigh_channels(rows, bias), (back.view(*rows.shape[:2], *back.shape[1:]),))


def _pass_batch_norm(operation: Operation, rows: Tensor) -> Passed | None:
    if operation.function is normalise_by:
        _, mean, variance, weight, bias, eps = operation.args
    else:
        _, mean, variance, weight, bias, _, _, eps = BatchNormArguments(*operation.args, **operation.kwargs)
    shift = normalise_by(torch.zeros_like(mean)[None], mean, variance, weight, bias, eps)[0]
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    return Passed(_weigh_channels(rows, shift), (rows * scale.view(-1, *[1] * (rows.ndim - 3)),))


def _pass_row_major(operation: Operation, rows: Tensor) -> Passed | None:
    back = rows.reshape(len(rows), *operation.inputs[0].bounds.lower.shape)
    return Passed(rows.new_zeros(rows.shape[:2]), (back,))


def _pass_affine(operation: Operation, rows: Tensor) -> Passed | None:
    """Transpose any affine operation: its value at 0 is the constant, its vector-Jacobian products are the rows."""
    inputs = [before.bounds.lower for before in operation.inputs]
    if (operation.function in PRODUCTS and len(inputs) > 1) or not _acts_per_image(operation):
        return None
    with torch.enable_grad():
        zeros = [torch.zeros_like(x, requires_grad=True) for x in inputs]
        result = _apply(operation, zeros)
    if not result.requires_grad:
        return None
    keep_graph = torch.is_grad_enabled()
    backs = [
        torch.autograd.grad(result, zeros, row, retain_graph=True, create_graph=keep_graph, materialize_grads=True)
        for row in rows
    ]
    return Passed(weigh(rows, result), tuple(map(torch.stack, zip(*backs, strict=True))))


def _apply(operation: Operation, tensors: list[Tensor]) -> Tensor:
    """Apply an operation to other tensors than it was recorded with."""
    given = iter(tensors)

    def fill(value: Any) -> Any:
        if isinstance(value, Operation):
            return next(given)
        if isinstance(value, Tensor) and value.is_inference():
            return value.clone()  # autograd does not save tensors of inference mode
        return type(value)(map(fill, value)) if type(value) in (list, tuple) else value

    assert operation.function is not None
    args = [fill(value) for value in operation.args]
    result = operation.function(*args, **{key: fill(value) for key, value in operation.kwargs.items()})
    part: Tensor = result if operation.index is None else result[operation.index]
    return part


def _acts_per_image(operation: Operation) -> bool:
    """Return True if each image's result depends on that image alone, as found by filling others with NaN."""
    inputs, result = [before.bounds.lower for before in operation.inputs], operation.bounds.lower
    same_axes = all(x.ndim == result.ndim for x in inputs)
    if same_axes and (
        operation.function in ELEMENTWISE_FUNCTIONS
        or (operation.function in POOLINGS and result.ndim == int(operation.function.__name__[-2]) + 2)
    ):
        return True
    numbers = torch.arange(len(result), device=result.device)
    mixed = torch.zeros((), dtype=torch.bool, device=result.device)
    for bit in range((len(result) - 1).bit_length()):  # any two images differ in one of the bits of their numbers
        for value in (0, 1):
            filled = (numbers >> bit & 1) == value
            nan = [torch.where(filled.view(-1, *[1] * (x.ndim - 1)), torch.nan, torch.zeros_like(x)) for x in inputs]
            with torch.no_grad():
                mixed = mixed | _apply(operation, nan)[~filled].isnan().any()
    return not mixed


def _upper_line(lower: Tensor, upper: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return slope and intercept of a line above ``x.clamp(low, high)`` for all x from ``lower`` to ``upper``.

    It joins the function at the lower bound and at the upper bound, or at ``high`` if the upper bound is beyond; it is
    constant where that encloses less area. For ReLU and its mirror image, these are CROWN's lines with the adaptive
    lower slope (Zhang et al. 2018, section 3.3).
    """
    start, second = lower.clamp(low, high), upper.clamp(max=high)
    sloped = (second > lower) & (upper - high < high - lower)
    rise = second.clamp(low, high) - start
    slope = torch.where(sloped, rise / torch.where(sloped, second - lower, 1.0), 0.0)
    return slope, torch.where(sloped, start - slope * lower, upper.clamp(low, high))


def _pass_clamp(operation: Operation, rows: Tensor, low: float, high: float, share: float = 1.0) -> Passed:
    """Bound ``share * x.clamp(low, high) + (1 - share) * x``, with a share in [0, 1]."""
    lower, upper = operation.inputs[0].bounds
    slope_above, intercept_above = _upper_line(lower, upper, low, high)
    slope_below, intercept_below = _upper_line(-upper, -lower, -high, -low)  # of the mirror image -clamp(-x)
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    constant = weigh(positive, intercept_above) - weigh(negative, intercept_below)
    back = positive * slope_above + negative * slope_below
    return Passed(constant * share, (back if share == 1 else back * share + rows * (1 - share),))


def _pass_relu(operation: Operation, rows: Tensor) -> Passed:
    return _pass_clamp(operation, rows, 0.0, math.inf)


def _pass_relu6(operation: Operation, rows: Tensor) -> Passed:
    return _pass_clamp(operation, rows, 0.0, 6.0)


def _pass_leaky_relu(operation: Operation, rows: Tensor) -> Passed | None:
    _, slope = _bind(operation, "input negative_slope", negative_slope=0.01)
    return _pass_clamp(operation, rows, 0.0, math.inf, 1 - slope) if 0 <= slope <= 1 else None


def _pass_clamp_to(names: str, operation: Operation, rows: Tensor) -> Passed | None:
    """Bound an operation that clamps; its arguments have these names."""
    ends = dict(zip(names.split(), _bind(operation, names), strict=True))
    low, high = ends.get("min", ends.get("min_val")), ends.get("max", ends.get("max_val"))
    if isinstance(low, (Tensor, Operation)) or isinstance(high, (Tensor, Operation)):
        return None
    return _pass_clamp(operation, rows, -math.inf if low is None else low, math.inf if high is None else high)


def _pass_max_pool(operation: Operation, rows: Tensor) -> Passed | None:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    _, kernel, stride, padding, dilation, *_ = _bind(operation, names, padding=0, dilation=1)
    lower, upper = operation.inputs[0].bounds
    axes = lower.ndim - 2
    if f"{axes}d" not in str(getattr(operation.function, "__name__", "")):  # images without their batch
        return None
    sizes = [_expand(value, axes) for value in (kernel, stride or kernel, padding, dilation)]
    windows = partial(_view_windows, sizes=sizes, outputs=operation.bounds.lower.shape[2:])
    lowest, highest = windows(lower, -math.inf), windows(upper, -math.inf)  # (N, C, ..., elements of the window)
    chosen = F.one_hot(lowest.argmax(-1), lowest.shape[-1]).bool()
    others = highest.masked_fill(chosen, -math.inf).amax(-1)
    exact = others <= lowest.amax(-1)
    positive = rows.clamp(min=0)
    constant = weigh(positive * ~exact, operation.bounds.upper)
    chosen_rows = (rows - positive * ~exact)[..., None] * chosen  # (K, N, C, ..., elements)
    zeros = rows.new_zeros(rows.shape[0] * rows.shape[1], *lower.shape[1:], requires_grad=True)
    with torch.enable_grad():
        at_zeros = windows(zeros, 0.0)
    (back,) = torch.autograd.grad(at_zeros, zeros, chosen_rows.flatten(0, 1), create_graph=torch.is_grad_enabled())
    return Passed(constant, (back.view(*rows.shape[:2], *back.shape[1:]),))


def _view_windows(x: Tensor, value: float, sizes: list[tuple[int, ...]], outputs: tuple[int, ...]) -> Tensor:
    """Return the elements of each pooling window, ``(N, C, ..., elements)``, with a value for those outside."""
    margins: list[int] = []
    for size, kernel, stride, padding, dilation, count in zip(x.shape[2:], *sizes, outputs, strict=True):
        end = (count - 1) * stride + dilation * (kernel - 1) + 1
        margins = [padding, end - size - padding, *margins]  # F.pad begins at the last axis
    x = F.pad(x, margins, value=value)
    for axis, (kernel, stride, _, dilation) in enumerate(zip(*sizes, strict=True), start=2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x.flatten(-len(outputs))


def _expand(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) * (axes // len(value)) if isinstance(value, (list, tuple)) else (value,) * axes


def _bind(operation: Operation, names: str, **defaults: Any) -> list[Any]:
    """Return an operation's arguments in the order of these names, and None for those without a default."""
    given = dict(zip(names.split(), operation.args, strict=False)) | operation.kwargs
    return [given.get(name, defaults.get(name)) for name in names.split()]


for names, rule in (
    (AFFINE, _pass_affine),
    (ELEMENTWISE, _pass_affine),
    (ROW_MAJOR, _pass_row_major),
    ("linear", _pass_linear),
    ("conv1d conv2d conv3d", _pass_conv),
    ("batch_norm", _pass_batch_norm),
    ("relu", _pass_relu),
    ("relu6", _pass_relu6),
    ("leaky_relu", _pass_leaky_relu),
    ("max_pool1d max_pool2d max_pool3d", _pass_max_pool),
    ("clamp clip", partial(_pass_clamp_to, "input min max")),
    ("clamp_min", partial(_pass_clamp_to, "input min")),
    ("clamp_max", partial(_pass_clamp_to, "input max")),
    ("hardtanh", partial(_pass_clamp_to, "input min_val max_val")),
):
    RULES.update(dict.fromkeys(find_functions(names), rule))
RULES[normalise_by] = _pass_batch_norm
