"""Callback that times updates of `fit`, and their communication, in all of its processes."""

import os
import statistics
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.accelerator_sections.standalone.rampart_probe import Channel, synchronize

Reply = dict[str, Any]


class ScalingProbe(Callback):
    """Time updates on request.

    The first process has a channel for requests and replies, and tells the others. A request has one key:

    - ``updates``: Train this number of updates. The reply has the ``seconds`` of the slowest process, the
      ``cpu_seconds`` of all processes together, and ``waits``, the mean seconds per update that a process waits for
      gradients of others after it has computed its own, by DDP's own clock.
    - ``all_reduces``: Exchange as many bytes as an update does, in the same buckets, this number of times. The reply
      has the median ``seconds`` of one exchange, and the ``buckets`` in bytes.
    - ``stop``: End all processes.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._start: tuple[float, float, float] | None = None
        self._left = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Reply to the request that is complete, and wait for the next one that needs updates."""
        if trainer.is_global_zero and self._channel is None:
            self._channel = Channel()
        reply = self._end_turn(trainer, pl_module) if self._left == 0 else {}
        while self._left == 0:
            request = self._exchange(trainer, reply)
            if "updates" in request:
                self._left = request["updates"]
                self._start_turn(trainer)
            else:
                reply = time_all_reduces(trainer, pl_module, request["all_reduces"])
        self._left -= 1

    def _exchange(self, trainer: Trainer, reply: Reply) -> dict[str, Any]:
        """Send a reply, and return the next request in all processes."""
        request: dict[str, Any] = {}
        if self._channel:
            self._channel.send(**reply)
            request = self._channel.receive()
        request = trainer.strategy.broadcast(request)
        if "stop" in request:
            os._exit(0)  # without a checkpoint, a test, or messages about processes that ended
        return request

    def _start_turn(self, trainer: Trainer) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model._set_ddp_runtime_logging_sample_rate(1)  # type: ignore[no-untyped-call]
        trainer.strategy.barrier()
        self._turn = self._left
        self._start = time.perf_counter(), time.process_time(), sum_waits(trainer)

    def _end_turn(self, trainer: Trainer, pl_module: LightningModule) -> Reply:
        if self._start is None:
            return {}
        synchronize(pl_module.device)
        now = time.perf_counter(), time.process_time(), sum_waits(trainer)
        used = [after - before for after, before in zip(now, self._start, strict=True)]
        everyone = gather(trainer, [*used, torch.get_num_threads()])
        return {
            "seconds": max(each[0] for each in everyone),
            "cpu_seconds": sum(each[1] for each in everyone),
            "waits": statistics.mean(each[2] for each in everyone) / self._turn,
            "threads": [each[3] for each in everyone],
        }


def gather(trainer: Trainer, mine: list[float]) -> list[list[float]]:
    """Return the numbers of all processes."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[list[float]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def sum_waits(trainer: Trainer) -> float:
    """Return the seconds that this process has waited for gradients, beyond the time of its own backward passes."""
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return 0.0
    found = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    # Means over the updates so far, in ns.
    waited = found.get("avg_backward_comm_time", 0) - found.get("avg_backward_compute_comm_overlap_time", 0)
    return float(1e-9 * waited * found.get("iteration", 0))


def time_all_reduces(trainer: Trainer, pl_module: LightningModule, repeats: int) -> Reply:
    """Time exchanges of an update's gradients on their own: nothing is computed, and all processes start together."""
    model = trainer.strategy.model
    assert isinstance(model, DistributedDataParallel)
    found = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    sizes = [int(size) for size in str(found.get("rebuilt_bucket_sizes") or found["bucket_sizes"]).split(",")]
    tensors = [torch.zeros(size // 4, device=pl_module.device) for size in sizes]
    seconds = []
    for _ in range(repeats):
        trainer.strategy.barrier()
        start = time.perf_counter()
        for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
        synchronize(pl_module.device)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "buckets": sizes}
