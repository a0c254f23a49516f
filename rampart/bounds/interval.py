"""Interval bound propagation (IBP): lower and upper bounds on a network's logits over all images in a box."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.bounds.interval_rules import (
    REASONS,
    RULES,
    RULES_IN_PLACE,
    VIEWS,
    Bounds,
    NoBoundError,
    NoBoundOfAttributeError,
)

LIKELY_SIDES = (28, 32, 64, 96, 224)  # Image sides to try with a network that has no `image_shape`.
PLAIN_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad")


def _operator(function: Callable[..., Any], in_place: bool = False) -> Any:
    """Return the method of an operator, such as ``__add__``."""

    def method(self: Interval, *others: Any) -> Any:
        return _bound(function, (self, *others), {}, in_place)

    return method


def _no_operator(name: str) -> Any:
    """Return the method of an operator that has no bound: it raises."""

    def method(*_: Any) -> Any:
        raise NoBoundError(f"no interval bound for {name}")

    return method


class Interval:
    """A box of tensors, which a network takes in place of a tensor (Gowal et al. 2018, section 3).

    ``network(Interval(lower, upper))`` returns bounds on every logit. Each operation returns an interval that contains
    its result for any tensor in the box, by the rules of :mod:`rampart.bounds.interval_rules`. An operation without a
    rule raises an error that names it; nothing is guessed. Bounds hold up to their dtype's rounding.

    Args:
        lower: ``(N, ...)``, float, lower bounds.
        upper: Upper bounds, of the same shape and dtype; nowhere below ``lower``.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self._bounds = Bounds(lower, upper)
        # The number of in-place changes, shared by all views of the same tensors, and the number that this one saw.
        self._changes, self._seen_changes = [0], 0
        self._last_linear: tuple[Bounds, Tensor, Tensor | None] | None = None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        _types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Bound a torch function that is called with an interval."""
        kwargs = dict(kwargs or {})
        return _bound(func, args, kwargs, bool(kwargs.pop("inplace", False)))

    def __getattr__(self, name: str) -> Any:
        """Return a tensor's attribute, or its method with a rule; raise for others, by name."""
        if name in PLAIN_ATTRIBUTES:
            return getattr(self.lower, name)
        method = getattr(Tensor, name, None)
        if name.startswith("_"):
            raise AttributeError(name)
        if not callable(method):
            raise NoBoundOfAttributeError(f"no interval bound for the attribute {name}")
        return partial(_call_method, method, self)

    __add__ = __radd__ = _operator(torch.add)
    __sub__, __rsub__ = _operator(torch.sub), _operator(torch.rsub)
    __mul__ = __rmul__ = _operator(torch.mul)
    __truediv__, __matmul__, __pow__ = _operator(torch.div), _operator(torch.matmul), _operator(torch.pow)
    __neg__, __abs__, __getitem__ = _operator(torch.neg), _operator(torch.abs), _operator(Tensor.__getitem__)
    __iadd__, __isub__ = _operator(torch.add, in_place=True), _operator(torch.sub, in_place=True)
    __imul__, __itruediv__ = _operator(torch.mul, in_place=True), _operator(torch.div, in_place=True)
    __lt__, __le__, __gt__, __ge__ = (_no_operator(f"the comparison {sign}") for sign in ("<", "<=", ">", ">="))
    __eq__, __ne__, __bool__ = (
        _no_operator("the comparison =="),
        _no_operator("the comparison !="),
        _no_operator("bool"),
    )
    __rpow__, __floordiv__, __mod__ = _no_operator("an exponent"), _no_operator("//"), _no_operator("%")
    __setitem__, __rtruediv__ = _no_operator("item assignment"), _no_operator("division by an interval")
    __float__, __int__ = _no_operator("float"), _no_operator("int")
    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self.lower)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    @property
    def bounds(self) -> Bounds:
        """Lower and upper bounds."""
        if self._seen_changes != self._changes[0]:
            raise NoBoundError("no interval bound for a tensor after another view of it was changed in place")
        return self._bounds

    @property
    def lower(self) -> Tensor:
        """Lower bounds."""
        return self.bounds.lower

    @property
    def upper(self) -> Tensor:
        """Upper bounds."""
        return self.bounds.upper

    def worst_logits(self, labels: Tensor) -> Tensor:
        """Return upper bounds on each class's logit minus the label's logit, over all images in the box.

        If the last operation was linear, the difference of two logits is bounded directly (elision of the last layer,
        Gowal et al. 2018, section 3). That is at least as tight as the difference of their bounds.

        Args:
            labels: ``(N,)``, int64, in [0, C).

        Returns:
            ``(N, C)``, 0 for the label. An image is certified if its bounds for all other classes are below 0 by more
            than rounding.
        """
        if self._last_linear is None:
            worst = self.upper - self.lower.gather(1, labels[:, None])
            return worst.scatter(1, labels[:, None], 0.0)
        inputs, weight, bias = self._last_linear
        differences = weight - weight[labels][:, None]  # (N, C, features)
        worst = torch.baddbmm(
            differences.abs() @ inputs.radius[:, :, None], differences, inputs.middle[:, :, None]
        ).squeeze(2)
        return worst if bias is None else worst + bias - bias[labels][:, None]


def _call_method(method: Callable[..., Any], x: Interval, *args: Any, **kwargs: Any) -> Any:
    return _bound(method, (x, *args), kwargs, in_place=False)


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Any:
    """Apply an operation's rule to its arguments, some of which are intervals."""
    rule = RULES.get(func)
    if rule is None and func in RULES_IN_PLACE:
        rule, in_place = RULES_IN_PLACE[func], True
    name, first = getattr(func, "__name__", str(func)), args[0] if args else None
    if rule is None or (in_place and not isinstance(first, Interval)):
        reason = f": {REASONS[name]}" if name in REASONS else ""
        raise NoBoundError(f"no interval bound for {name}{reason}")
    try:
        result = rule(*_unwrap(args), **{key: _unwrap(value) for key, value in kwargs.items()})
    except TypeError as error:
        if isinstance(error, NoBoundError):
            raise
        raise NoBoundError(f"no interval bound for {name} of these arguments") from error
    if in_place:
        assert isinstance(first, Interval)
        return _replace(first, result)
    wrapped = _wrap(result, first if func in VIEWS and isinstance(first, Interval) else None)
    if func is F.linear:
        _remember_linear(wrapped, *args, **kwargs)
    return wrapped


def _remember_linear(result: Interval, input: Interval, weight: Tensor, bias: Tensor | None = None) -> None:
    result._last_linear = input.bounds, weight, bias


def _unwrap(value: Any) -> Any:
    if isinstance(value, Interval):
        return value.bounds
    return type(value)(map(_unwrap, value)) if type(value) in (list, tuple) else value


def _wrap(result: Any, viewed: Interval | None) -> Any:
    if not isinstance(result, Bounds):
        return tuple(_wrap(item, viewed) for item in result) if type(result) is tuple else result
    interval = Interval(*result)
    if viewed is not None:
        interval._changes, interval._seen_changes = viewed._changes, viewed._seen_changes
    return interval


def _replace(x: Interval, result: Bounds) -> Interval:
    """Give an interval new bounds, in place."""
    x._bounds, x._last_linear = result, None
    x._changes[0] += 1
    x._seen_changes = x._changes[0]
    return x


def interval_logits(network: nn.Module, images: Tensor, eps: float) -> Interval:
    """Return bounds on the logits of all images within eps of these and within [0, 1].

    Args:
        network: Must consist of operations with a rule; see :class:`Interval`.
        images: ``(N, ...)``, float, in [0, 1].
        eps: l-inf radius, pixel scale, at least 0.

    Returns:
        An interval of shape ``(N, C)``.

    Raises:
        NoBoundError: If the network has an operation without a rule; the message names the layer.
        TypeError: If the network does not return an interval, because it uses other functions than torch's.
    """
    with torch.autocast(images.device.type, enabled=False):  # Low precision would round by more than a small eps.
        logits = _propagate(network, network, Interval((images - eps).clamp(0, 1), (images + eps).clamp(0, 1)))
    if not isinstance(logits, Interval):
        raise TypeError(
            f"the network must use torch's functions alone to be bounded: it returned {type(logits).__name__} for an "
            "Interval"
        )
    return logits


def check_bounded(network: nn.Module) -> None:
    """Check that every operation of a network has an interval bound, as far as that is possible without images.

    The network is run on the meta device, in its current mode, with images of ``network.image_shape`` or else of likely
    sizes. If it accepts none of them, nothing is checked.

    Args:
        network: Not changed.

    Raises:
        NoBoundError: If an operation has no bound; the message names the first such layer.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise NoBoundError(
                f"no interval bound for BatchNorm by batch statistics (in {_describe(name, module)}): freeze it with "
                "`eval()` before training, or use a network without BatchNorm"
            )
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    for shape in _likely_shapes(network):
        try:
            _propagate_on_meta(network, shape)
        except NoBoundError:
            raise
        except Exception:  # noqa: S112 - the network takes images of another shape
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
    """Pass a box through a network; if an operation has no bound, name its layer in the error."""
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
    """Yield shapes of images that the network may take, the likeliest first."""
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
