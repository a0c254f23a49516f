"""CUDA graphs: sequences of GPU operations, recorded once and launched as a whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch


class Recorder(ABC):
    """Records functions on one device. Recordings of one recorder share their memory for intermediate results.

    Args:
        device: Device of all tensors.
    """

    @abstractmethod
    def __init__(self, device: torch.device) -> None: ...

    @abstractmethod
    def record(self, function: Callable[[], None], warm_up: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """Record the device's operations in a function.

        Args:
            function: Function to record; while it is recorded, none of its operations has an effect.
            warm_up: Functions with the same operations, called first: libraries choose their algorithms then.

        Returns:
            A function that repeats the operations on the same memory.
        """


class CUDAGraphs(Recorder):
    """Recorder for NVIDIA GPUs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], None], warm_up: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """See :meth:`Recorder.record`."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for call in warm_up:
                    call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as those that load data or watch over other processes, may use the GPU meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                function()
        return graph.replay
