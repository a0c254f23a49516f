"""Interval bound propagation: what a network can answer to any image of a box, bounded from both sides."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

LIKELY_SIDES = (28, 32, 64, 96, 224)  # Of images, for a network that does not say which it takes.


class NoBoundError(TypeError):
    """Raised for an operation that has no interval bound."""


class Interval:
    """A box of tensors that goes through a network in the place of one (Gowal et al. 2018, section 3).

    ``network(Interval(lower, upper))`` bounds every logit: each operation returns an interval that holds what the
    operation returns for any tensor in the box. Affine operations move the middle and stretch the radius by the
    weights' absolute values; ReLU and pooling, which never fall, act on both ends. An operation without a rule raises
    TypeError or AttributeError, so no bound is ever that of something else. Bounds hold up to their dtype's rounding.

    Args:
        lower: ``(N, ...)``, float, the smallest values.
        upper: Like ``lower``, the largest; nowhere below it.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper = lower, upper
        self._last_affine: tuple[Interval, Tensor, Tensor | None] | None = None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        _types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Interval:
        """Answer a torch function that is called with an interval."""
        rule = _RULES.get(func)
        if rule is None or not args or not isinstance(args[0], Interval):
            raise NoBoundError(
                f"no interval bound for {getattr(func, '__name__', func)} of these arguments; "
                f"known, of an interval: {', '.join(sorted({known.__name__ for known in _RULES}))}"
            )
        return rule(*args, **(kwargs or {}))

    @property
    def middle(self) -> Tensor:
        """Centre of the box."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half its width, nowhere negative."""
        return (self.upper - self.lower) / 2

    @property
    def shape(self) -> torch.Size:
        """Of both ends."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of both ends."""
        return self.lower.dtype

    def dim(self) -> int:
        """Number of dimensions."""
        return self.lower.dim()

    def __len__(self) -> int:
        return len(self.lower)

    def __add__(self, other: Tensor | float | Interval) -> Interval:
        if isinstance(other, Interval):
            return Interval(self.lower + other.lower, self.upper + other.upper)
        return Interval(self.lower + other, self.upper + other)

    def __iadd__(self, other: Tensor | float | Interval) -> Interval:
        total = self + other
        self.lower, self.upper, self._last_affine = total.lower, total.upper, None
        return self

    def __sub__(self, other: Tensor | float) -> Interval:
        return Interval(self.lower - other, self.upper - other)

    def __truediv__(self, other: Tensor | float) -> Interval:
        low, high = self.lower / other, self.upper / other
        return Interval(torch.minimum(low, high), torch.maximum(low, high))

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Interval:
        """As of a tensor."""
        return Interval(
            self.lower.contiguous(memory_format=memory_format), self.upper.contiguous(memory_format=memory_format)
        )

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Interval:
        """As of a tensor."""
        return Interval(self.lower.flatten(start_dim, end_dim), self.upper.flatten(start_dim, end_dim))

    def mean(self, dim: tuple[int, ...]) -> Interval:
        """As of a tensor."""
        return Interval(self.lower.mean(dim), self.upper.mean(dim))

    def worst_logits(self, labels: Tensor) -> Tensor:
        """Logits that no image of the box can make worse for the label: its own is 0, the others are at most these.

        Where the last operation was linear, the difference of two logits is bounded as one (Gowal et al. 2018, section
        3, elision of the last layer), which is at least as tight as the difference of their bounds.

        Args:
            labels: ``(N,)``, int64, in [0, C).

        Returns:
            ``(N, C)``: upper bounds of each class's logit minus the label's. Where all others are below 0 by more than
            rounding, the label is certified.
        """
        if self._last_affine is None:
            worst = self.upper - self.lower.gather(1, labels[:, None])
            return worst.scatter(1, labels[:, None], 0.0)
        inputs, weight, bias = self._last_affine
        differences = weight - weight[labels][:, None]  # (N, C, features)
        worst = torch.baddbmm(
            differences.abs() @ inputs.radius[:, :, None], differences, inputs.middle[:, :, None]
        ).squeeze(2)
        return worst if bias is None else worst + bias - bias[labels][:, None]


def _conv2d(x: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Interval:
    middle = F.conv2d(x.middle, weight, bias, *args, **kwargs)
    return _around(middle, F.conv2d(x.radius, weight.abs(), None, *args, **kwargs))


def _linear(x: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    result = _around(F.linear(x.middle, weight, bias), F.linear(x.radius, weight.abs()))
    result._last_affine = x, weight, bias
    return result


def _batch_norm(
    x: Interval,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - torch's signature
    eps: float = 1e-5,
) -> Interval:
    if training:
        raise NoBoundError("no interval bound for BatchNorm by batch statistics: freeze it (`eval()`) before training")
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    middle = x.middle * scale.view(shape) + shift.view(shape)
    return _around(middle, x.radius * scale.abs().view(shape))


def _around(middle: Tensor, radius: Tensor) -> Interval:
    return Interval(middle - radius, middle + radius)


def _rising(func: Callable[..., Any]) -> Callable[..., Interval]:
    """The rule of a function that never falls in its first argument."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        if kwargs.get("inplace"):
            x._last_affine = None
        return Interval(func(x.lower, *args, **kwargs), func(x.upper, *args, **kwargs))

    return rule


def _dropout(x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False) -> Interval:  # noqa: ARG001
    if training:
        raise NoBoundError("no interval bound for dropout in train mode")
    return x


_RULES: dict[Callable[..., Any], Callable[..., Interval]] = {
    F.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.dropout: _dropout,
    **{func: _rising(func) for func in (F.relu, torch.relu, F.max_pool2d, F.adaptive_avg_pool2d, torch.flatten)},
}


def interval_logits(network: nn.Module, images: Tensor, eps: float) -> Interval:
    """Bound the logits of every image within eps of these and within [0, 1].

    Args:
        network: Of operations that :class:`Interval` knows.
        images: ``(N, ...)``, float, in [0, 1].
        eps: Radius, l-inf, pixel scale, not negative.

    Raises:
        NoBoundError: If the network has an operation without a rule; the message names the layer.
    """
    with torch.autocast(images.device.type, enabled=False):  # Coarse dtypes would round by more than a small eps.
        logits = _propagate(network, network, Interval((images - eps).clamp(0, 1), (images + eps).clamp(0, 1)))
    if not isinstance(logits, Interval):
        raise TypeError(f"the network returned {type(logits).__name__} for an Interval: it leaves torch's functions")
    return logits


def check_bounded(network: nn.Module) -> None:
    """Refuse a network with an operation that has no interval bound, as far as this shows without images.

    Tried on the meta device, in the network's mode, with images of ``network.image_shape`` or else of likely sizes;
    where none of them fits the network, the first batch has to tell.

    Args:
        network: Left as it is.

    Raises:
        NoBoundError: With the name of the first layer that has no bound.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise NoBoundError(
                f"no interval bound for BatchNorm by batch statistics (in {_describe(name, module)}): freeze it with "
                "`eval()` before training, or take a network without BatchNorm"
            )
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    for shape in _likely_shapes(network):
        try:
            _propagate_on_meta(network, shape)
        except NoBoundError:
            raise
        except Exception:  # noqa: S112 - an image of another shape
            continue
        return


def _propagate_on_meta(network: nn.Module, shape: tuple[int, ...]) -> None:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((tensor.dtype for tensor in meta.values() if tensor.is_floating_point()), None)
    image = torch.empty(2, *shape, dtype=dtype, device="meta")
    with torch.no_grad():
        _propagate(network, lambda box: functional_call(network, meta, (box,)), Interval(image, image.clone()))


def _propagate(network: nn.Module, forward: Callable[[Interval], Any], box: Interval) -> Any:
    """Send a box through a network, and name the layer where there is no bound."""
    try:
        return forward(box)
    except NoBoundError as error:
        names = {module: name for name, module in network.named_modules()}
        callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        layer = [network, *(caller for caller in callers if isinstance(caller, nn.Module) and caller in names)][-1]
        where = _describe(names[layer], layer)
        raise NoBoundError(f"{error} (in {where})") from None


def _describe(name: str, module: nn.Module) -> str:
    return f"layer {name}, {type(module).__name__}" if name else type(module).__name__


def _likely_shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of the images that a network may take, the likeliest first."""
    stated: Any = getattr(network, "image_shape", None)
    if stated is not None:
        yield tuple(stated)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            yield from ((module.in_channels, side, side) for side in LIKELY_SIDES)
            return
        if isinstance(module, nn.Linear):
            side = math.isqrt(module.in_features)
            yield (1, side, side)
            yield (module.in_features,)
            return
