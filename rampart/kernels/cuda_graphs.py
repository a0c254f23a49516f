"""CUDA graphs: sequences of GPU operations, recorded once and launched as a whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch


class Recorder(ABC):
    """Records functions on one device. Recordings of one recorder share their memory for intermediate results.

    Args:
        device: Device of all tensors.
    """

    @abstractmethod
    def __init__(self, device: torch.device) -> None: ...

    @staticmethod
    def can_record(device: torch.device) -> bool:  # noqa: ARG004 - the interface
        """Return False while the device's operations are being recorded already, by other code."""
        return True

    def wait(self) -> None:  # noqa: B027 - only devices with several queues need it
        """Let the operations that follow wait for earlier replays, whose memory they may use."""

    @abstractmethod
    def record(self, function: Callable[[], None], warm_up: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """Record the device's operations in a function.

        Args:
            function: Function to record; while it is recorded, none of its operations has an effect.
            warm_up: Functions with the same operations, called first: libraries choose their algorithms then.

        Returns:
            A function that repeats the operations on the same memory.

        Raises:
            Exception: If the function can't be recorded. The device and this process can be used as before; a new
                recorder is needed.
        """


class CUDAGraphs(Recorder):
    """Recorder for NVIDIA GPUs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
            self._replayed_on = torch.cuda.current_stream()

    @staticmethod
    def can_record(device: torch.device) -> bool:
        """See :meth:`Recorder.can_record`."""
        with torch.cuda.device(device):
            return not torch.cuda.is_current_stream_capturing()

    def wait(self) -> None:
        """See :meth:`Recorder.wait`."""
        current = torch.cuda.current_stream(self._device)
        if current != self._replayed_on:
            current.wait_stream(self._replayed_on)
            self._replayed_on = current

    def record(self, function: Callable[[], None], warm_up: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """See :meth:`Recorder.record`."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            try:
                self._warm_up(warm_up)
                return self._capture(function).replay
            finally:
                torch.cuda.set_stream(current)  # torch leaves its own stream set if the end of a capture fails.

    def _warm_up(self, calls: Sequence[Callable[[], None]]) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for call in calls[:-1]:
                    call()
                # A capture in which the host waits breaks. Here waiting raises an error that breaks nothing.
                with _errors_when_waiting():
                    calls[-1]()
        finally:
            current.wait_stream(self._stream)

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph, number, failure = torch.cuda.CUDAGraph(), torch.zeros((), device=self._device), None
        try:
            # Other threads, such as those that load data or watch over other processes, may use the GPU meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                try:
                    function()
                except BaseException as error:
                    failure = error  # The end of the capture raises another one, which does not say why.
                    raise
        except BaseException as error:
            with suppress(Exception):  # of a GPU that can't be used any more
                self._repair(graph, number)
            raise failure or error from None
        finally:
            del failure  # Its traceback holds this frame.
        return graph

    def _repair(self, graph: torch.cuda.CUDAGraph, number: torch.Tensor) -> None:
        """Undo what a failed capture leaves behind, unless it was ended properly.

        torch's allocator continues to look for allocations of the capture, and the random generator to expect one.
        """
        with suppress(RuntimeError):
            graph.pool()  # raises if the capture was not ended
            return
        index = number.device.index
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        # The end of a successful capture resets the generator.
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"):
            number.zero_()


@contextmanager
def _errors_when_waiting() -> Iterator[None]:
    """Raise an error inside the context if the host waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
