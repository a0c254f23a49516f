"""Intervals: lower and upper bounds that pass through a network in place of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.bounds.interval_rules import (
    REASONS,
    RULES,
    RULES_IN_PLACE,
    VIEWS,
    Bounds,
    NoBoundError,
    NoBoundOfAttributeError,
)

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
    """All tensors between a lower and an upper bound, as input of a network (Gowal et al. 2018, section 3).

    ``network(Interval(lower, upper))`` returns bounds on every logit. Each operation returns an interval that contains
    its result for any tensor in the box, by the rules of :mod:`rampart.bounds.interval_rules`. An operation without a
    rule raises an error that names it. Bounds hold up to their dtype's rounding.

    Args:
        lower: ``(N, ...)``, float, lower bounds.
        upper: Upper bounds, like ``lower`` in shape and dtype; nowhere below it.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self._bounds = Bounds(lower, upper)
        # Number of in-place changes, shared by all views of the same tensors, and that number when this was current.
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
