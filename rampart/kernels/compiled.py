"""Compiled execution of networks by ``torch.compile``, apart from the networks."""

import warnings
from collections.abc import Callable, Hashable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from rampart.kernels.fast_path import is_traced_or_transformed

LIMIT = 8
"""Compilations of one kind of call; torch stops at the same number by default."""

_BACKEND = "inductor"


def call_compiled(network: nn.Module, images: Tensor) -> Any:
    """Call a network in its compiled form; the network itself is not changed.

    Networks of one class share compiled code, which takes weights as inputs, so copies of a network and other weights
    compile nothing. Code is compiled again for another mode, for gradients, trainable weights, dtypes and autocast, and
    once for all sizes of a batch after the first. A network that can't be compiled is called as usual, and one warning
    says why.

    Args:
        network: Any network.
        images: ``(N, ...)``.

    Returns:
        Output of the network.
    """
    # A network that is compiled already, or is part of what is being recorded, is called as usual.
    if hasattr(network, "_orig_mod") or network._compiled_call_impl is not None or is_traced_or_transformed():
        return network(images)
    kind: Any = type(network)
    return _find_kind(kind, network.training, torch.is_grad_enabled())(network, images)


class _Kind:
    """Compiled calls of networks of one class in one mode.

    Args:
        name: Name of the class.
    """

    def __init__(self, name: str) -> None:
        self._name, self._compilations, self._usable = name, 0, True
        # torch counts compilations, and remembers sizes that change, by code object: each kind has its own.
        code = _call.__code__.replace(co_name=f"call_{name}_{id(self)}")
        self._call: Callable[[nn.Module, Tensor], Any] = torch.compile(
            FunctionType(code, globals()), backend=self._compile, fullgraph=True
        )

    def __call__(self, network: nn.Module, images: Tensor) -> Any:
        """Call a network, compiled if possible."""
        if not self._usable:
            return network(images)
        if self._compilations >= LIMIT:
            with torch.compiler.set_stance("eager_on_recompile"):
                return self._call(network, images)
        try:
            output = self._call(network, images)
        except Exception as error:
            output = network(images)  # If the network fails by itself, its error is raised.
            self._usable = False
            reason = _first_line(error)
            warnings.warn(f"execution.compile: {self._name} is executed as usual, since {reason}", stacklevel=2)
            return output
        if self._compilations >= LIMIT:
            warnings.warn(
                f"execution.compile: {self._name} was compiled {LIMIT} times for different batches and modes; others "
                "are executed as usual",
                stacklevel=2,
            )
        return output

    def _compile(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend
        from torch._functorch import config

        self._compilations += 1
        # Buffers that a backward pass may reuse would forbid a second one, which some losses need.
        with config.patch(donated_buffer=False):
            return lookup_backend(_BACKEND)(graph, inputs)


@lru_cache(maxsize=64)
def _find_kind(network: Hashable, training: bool, gradients: bool) -> _Kind:  # noqa: ARG001 - part of the kind
    """Return the calls of a class of networks, in train or eval mode, with or without gradients."""
    return _Kind(getattr(network, "__name__", "network"))


def _call(network: nn.Module, images: Tensor) -> Any:
    return network(images)


def _first_line(error: Exception) -> str:
    """Return the error's class and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return f"torch.compile failed: {type(error).__name__}: {next(filter(None, lines), 'no message')}"
