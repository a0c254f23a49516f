"""A recorder for the CPU, in place of CUDA graphs in tests."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rampart.kernels.cuda_graphs import Recorder

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Tape(Recorder):
    """Records the operations that torch dispatches, and repeats them on the same memory, without any other Python.

    Like a CUDA graph, it refuses operations whose results the host would have to wait for. It also refuses random ones.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, function: Callable[[], None], warm_up: Sequence[Callable[[], None]]) -> Callable[[], None]:
        for call in warm_up:
            call()
        with _Recording() as recording:
            function()
        replay: Callable[[], None] = recording.replay
        return replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in READS or (name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1:2]))):
            raise RuntimeError(f"{name} makes the host wait for the device")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{name} is random")
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, list(_tensors(result))))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self.operations:
                for result, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if result.data_ptr() != new.data_ptr():
                        result.copy_(new)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
