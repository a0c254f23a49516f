"""Tensors computed from weights, such as folded BatchNorm, once per attack instead of once per forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from rampart.kernels.precision import autocast_dtype

Compute = Callable[..., tuple[Tensor, ...]]


class DerivedWeights:
    """Tensors computed from the weights of a network that does not change, each computed at its first use."""

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[Compute, Sequence[Tensor], tuple[Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[object, ...], sources: Sequence[Tensor], compute: Compute) -> tuple[Tensor, ...]:
        """Return ``compute(*sources)``; the tensors of the first call if this key had the same source tensors then."""
        if key not in self._entries:
            with torch.no_grad():
                self._entries[key] = compute, sources, compute(*sources)
        _, first, tensors = self._entries[key]
        if any(one is not other for one, other in zip(first, sources, strict=True)):
            return compute(*sources)  # Weights that are computed at each call, or replaced during a call.
        return tensors

    def refresh(self) -> None:
        """Compute all tensors again, in their place in memory, after the weights have changed."""
        with torch.no_grad():
            for compute, sources, tensors in self._entries.values():
                for tensor, new in zip(tensors, compute(*sources), strict=True):
                    tensor.copy_(new)


_CURRENT: ContextVar[DerivedWeights | None] = ContextVar("derived weights", default=None)


@contextmanager
def frozen_weights(derived: DerivedWeights) -> Iterator[None]:
    """Compute derived weights only once inside the context, in which no weight may change.

    Args:
        derived: Tensors computed so far; new ones are added.
    """
    token = _CURRENT.set(derived)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_derived() -> DerivedWeights | None:
    """Return the derived weights of the innermost :func:`frozen_weights`; None outside of any."""
    return _CURRENT.get()


def derive_weights(
    layer: nn.Module, sources: Sequence[Tensor], compute: Compute, channels_last: bool = False
) -> tuple[Tensor, ...]:
    """Return tensors computed from a layer's weights, in an attack computed once.

    Args:
        layer: The layer, which has one kind of derived weights.
        sources: Weights and buffers. If one needs a gradient, nothing is reused.
        compute: Function of the sources that computes the tensors. It must not refer to the network.
        channels_last: Memory format in which 4-D tensors are kept for reuse.
    """
    derived = None if torch.compiler.is_compiling() else _CURRENT.get()
    if derived is None or (torch.is_grad_enabled() and any(source.requires_grad for source in sources)):
        return compute(*sources)
    dtype = autocast_dtype(sources[0].device.type) or sources[0].dtype

    def convert(*sources: Tensor) -> tuple[Tensor, ...]:
        tensors = [tensor.to(dtype) for tensor in compute(*sources)]
        return tuple(
            tensor.contiguous(memory_format=torch.channels_last) if channels_last and tensor.ndim == 4 else tensor
            for tensor in tensors
        )

    return derived.get((id(layer), dtype, channels_last), sources, convert)
