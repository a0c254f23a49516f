"""Intervals: lower and upper bounds that pass through a network in place of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.bounds.batch_norm import BatchNormArguments, normalise_by_batch
from rampart.bounds.interval_rules import (
    PLAIN_FORMS,
    REASONS,
    RULES,
    VIEWS,
    Bounds,
    NoBoundError,
    NoBoundOfAttributeError,
)
from rampart.bounds.trace import Operation
from rampart.kernels import full_float32, sync_batch_norm
from rampart.kernels.batch_norm import normalise_by

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

    A batch of tensors can pass along with the box, as ``clean``: each operation is applied to it too, in the same call.
    BatchNorm in train mode needs it, since it normalises the box by the statistics of that batch.

    Args:
        lower: ``(N, ...)``, float, lower bounds.
        upper: Upper bounds, like ``lower`` in shape and dtype; nowhere below it.
        clean: A batch that passes along, like ``lower`` in shape; nothing does if None.
        trace: Record the operations in :attr:`operation`. They keep all intermediate bounds in memory.

    Attributes:
        clean: The batch after the operations so far, or None.
        operation: The operation that led here, with those before it as its inputs; None without ``trace``.
    """

    def __init__(self, lower: Tensor, upper: Tensor, clean: Tensor | None = None, trace: bool = False) -> None:
        self._bounds, self.clean = Bounds(lower, upper), clean
        self.operation = Operation(None, (), {}, None, self._bounds) if trace else None
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
        Computed without autocast and TF32, whatever the settings.

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
        with full_float32(weight.device.type):
            worst = torch.baddbmm(
                differences.abs() @ inputs.radius[:, :, None], differences, inputs.middle[:, :, None]
            ).squeeze(2)
        return worst if bias is None else worst + bias - bias[labels][:, None]


def _call_method(method: Callable[..., Any], x: Interval, *args: Any, **kwargs: Any) -> Any:
    return _bound(method, (x, *args), kwargs, in_place=False)


def _bound(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool) -> Any:
    """Apply an operation's rule to its arguments, some of which are intervals."""
    plain = PLAIN_FORMS.get(func, func)
    in_place = in_place or plain is not func
    first = args[0] if args else None
    name = getattr(func, "__name__", str(func))
    if plain not in RULES or (in_place and not isinstance(first, Interval)):
        reason = f": {REASONS[name]}" if name in REASONS else ""
        raise NoBoundError(f"no interval bound for {name}{reason}")
    try:
        clean, plain, args, kwargs = _apply_to_clean(plain, args, kwargs)
        result = RULES[plain](*_replace_intervals(args, _get_bounds), **_replace_intervals(kwargs, _get_bounds))
    except (AttributeError, TypeError) as error:
        if isinstance(error, NoBoundError):
            raise
        raise NoBoundError(f"no interval bound for {name} of these arguments") from error
    _check_precision(name, result, (*args, *kwargs.values()))
    wrapped = _wrap(result, clean, plain, args, kwargs)
    if in_place:
        assert isinstance(first, Interval)
        return _replace(first, wrapped)
    if func in VIEWS and isinstance(first, Interval):
        for view in wrapped if isinstance(wrapped, tuple) else (wrapped,):
            if isinstance(view, Interval):
                view._changes, view._seen_changes = first._changes, first._seen_changes
    if func is F.linear:
        _remember_linear(wrapped, *args, **kwargs)
    return wrapped


def _apply_to_clean(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Apply an operation to the batch that passes along with its intervals, if there is one.

    Returns:
        The result, or None without a batch; then the operation that applies to the box, and its arguments.
    """
    if any(interval.clean is None for interval in _find_intervals((*args, *kwargs.values()))):
        return None, function, args, kwargs
    clean_args, clean_kwargs = _replace_intervals(args, _get_clean), _replace_intervals(kwargs, _get_clean)
    synced = function is sync_batch_norm
    if synced or (function is F.batch_norm and BatchNormArguments(*args, **kwargs).training):
        clean, statistics = normalise_by_batch(clean_args[0], clean_args, clean_kwargs, synced)
        return clean, normalise_by, (args[0], *statistics), {}
    return function(*clean_args, **clean_kwargs), function, args, kwargs


def _check_precision(name: str, result: Any, operands: tuple[Any, ...]) -> None:
    """Refuse results that are rounded to a lower precision than the operands have, which bounds do not allow for."""
    coarsest = max((torch.finfo(interval.dtype).eps for interval in _find_intervals(operands)), default=0.0)
    for bounds in result if type(result) is tuple else (result,):
        dtype = bounds.lower.dtype if isinstance(bounds, Bounds) else None
        if dtype is not None and not (dtype.is_floating_point and torch.finfo(dtype).eps <= coarsest):
            raise NoBoundError(f"no interval bound for {name} that rounds to {str(dtype).removeprefix('torch.')}")


def _remember_linear(result: Interval, input: Interval, weight: Tensor, bias: Tensor | None = None) -> None:
    result._last_linear = input.bounds, weight, bias


def _find_intervals(values: Any) -> list[Interval]:
    found = [value for value in values if isinstance(value, Interval)]
    nested = [value for value in values if type(value) in (list, tuple)]
    return [*found, *(interval for value in nested for interval in _find_intervals(value))]


def _get_bounds(interval: Interval) -> Bounds:
    return interval.bounds


def _get_clean(interval: Interval) -> Tensor:
    assert interval.clean is not None
    return interval.clean


def _get_operation(interval: Interval) -> Operation:
    # A tensor that was bounded without a trace, such as a buffer, is a box of its own.
    return interval.operation or Operation(None, (), {}, None, interval.bounds)


def _replace_intervals(value: Any, get: Callable[[Interval], Any]) -> Any:
    """Replace each interval, also inside lists, tuples and dictionaries."""
    if isinstance(value, Interval):
        return get(value)
    if type(value) is dict:
        return {key: _replace_intervals(item, get) for key, item in value.items()}
    return type(value)(_replace_intervals(item, get) for item in value) if type(value) in (list, tuple) else value


def _wrap(result: Any, clean: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return intervals in place of bounds, with their part of the clean batch and of the trace."""
    traced = any(interval.operation is not None for interval in _find_intervals((*args, *kwargs.values())))

    def wrap(bounds: Any, clean: Any, index: int | None) -> Any:
        if not isinstance(bounds, Bounds):
            return bounds
        interval = Interval(*bounds, clean=clean)
        if traced:
            operands = _replace_intervals(args, _get_operation), _replace_intervals(kwargs, _get_operation)
            interval.operation = Operation(function, *operands, index, bounds)
        return interval

    if type(result) is not tuple:
        return wrap(result, clean, None)
    cleans = clean or [None] * len(result)
    return tuple(wrap(*item, index) for index, item in enumerate(zip(result, cleans, strict=True)))


def _replace(x: Interval, result: Interval) -> Interval:
    """Give an interval new bounds, in place."""
    x._bounds, x.clean, x.operation, x._last_linear = result.bounds, result.clean, result.operation, None
    x._changes[0] += 1
    x._seen_changes = x._changes[0]
    return x
