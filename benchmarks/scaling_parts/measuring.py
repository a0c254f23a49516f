"""Measure the cases: one process and two train in turn."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.accelerator_sections.setting import ROOT
from benchmarks.accelerator_sections.two_ranks import find_free_port
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from benchmarks.scaling_parts.cases import Case, build_fit
from benchmarks.timing import Times

Row = dict[str, Any]
Reply = dict[str, Any]
WAIT = 300.0  # longest wait for a reply, in seconds
END = 20.0  # longest wait for the end of a process, in seconds
WARM_UP = 3  # least number of updates before the timed ones: DDP forms its final buckets, attacks are recorded
ALL_REDUCES = 20  # exchanges of gradients on their own, per round


@dataclass(frozen=True)
class Rounds:
    """Number of timed turns of each contestant.

    Attributes:
        least: Smallest number of rounds.
        most: Largest number of rounds.
        seconds: No round starts after this time of a case, once there are enough.
    """

    least: int
    most: int
    seconds: float


class Training:
    """A training in one or two processes, which waits for requests.

    Args:
        workers: The processes that were started; the first has the channel.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def ask(self, **request: int) -> Reply:
        """Send a request and return the reply; see :class:`benchmarks.scaling_parts.probe.ScalingProbe`."""
        if request:
            self._workers[0].send(**request)
        return self._workers[0].receive(WAIT)


@contextmanager
def start_training(case: Case, processes: int, device: str, folder: Path) -> Iterator[Training]:
    """Start the training of a case, and end all of its processes afterwards.

    Args:
        case: The case.
        processes: Number of processes, 1 or 2.
        device: ``"cpu"`` or ``"cuda"``.
        folder: New folder for files.
    """
    folder.mkdir()
    shared = device == "cuda" and processes > torch.cuda.device_count()
    arguments = build_fit(case, processes, device, shared, folder / "runs")
    port = str(find_free_port())
    with ExitStack() as stack, patch.dict(os.environ):
        os.environ.pop("OMP_NUM_THREADS", None)  # Threads are those that users get.
        workers = []
        for rank in range(processes if shared else 1):
            names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
            worker = Worker(arguments, ROOT, folder / f"{rank}.txt", names if shared else None)
            workers.append(stack.enter_context(worker))
        yield Training(workers)
        with suppress(WorkerError):
            workers[0].send(stop=1)
            workers[0].receive(END)  # There is no reply: the process ends.


def measure_case(case: Case, device: str, rounds: Rounds) -> Row:
    """Return images per second of both, their ratio, and the communication of two processes.

    Raises:
        WorkerError: If a process fails.
    """
    begun = time.monotonic()
    turns: dict[str, list[Reply]] = {"one": [], "two": [], "exchanges": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        start_training(case, 1, device, Path(folder) / "one") as one,
        start_training(case, 2, device, Path(folder) / "two") as two,
    ):
        for training in (one, two):
            training.ask()
            training.ask(updates=max(case.updates, WARM_UP))
        while len(turns["two"]) < rounds.least or (
            len(turns["two"]) < rounds.most and time.monotonic() - begun < rounds.seconds
        ):
            turns["one"].append(one.ask(updates=case.updates))
            turns["two"].append(two.ask(updates=case.updates))
            turns["exchanges"].append(two.ask(all_reduces=ALL_REDUCES))
    return {"case": case.name, "images_per_update": case.images} | summarise(case, turns)


def summarise(case: Case, turns: dict[str, list[Reply]]) -> Row:
    """Summarise the turns of one process and of two.

    Args:
        case: The case.
        turns: The replies of one process, of two, and to ``exchanges`` of gradients, in the order of the rounds.

    Returns:
        Images per second, medians; ``ratio``, the median over the rounds of two processes' throughput divided by
        one's, with the quartiles; ``cpu_ratio``, the same for images per second of CPU time, on which other work on
        the machine has less influence; the shares of two processes' median step, and all turns.
    """
    contestants = ("one", "two")
    seconds = Times({name: [turn["seconds"] for turn in turns[name]] for name in contestants})
    cpu = Times({name: [turn["cpu_seconds"] for turn in turns[name]] for name in contestants})
    images = case.images * case.updates
    step = seconds.median("two") / case.updates
    ratios = [one / two for one, two in zip(seconds.seconds["one"], seconds.seconds["two"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    waits = statistics.median(turn["waits"] for turn in turns["two"])
    exchange = statistics.median(turn["seconds"] for turn in turns["exchanges"])
    return {
        "rounds": len(ratios),
        "threads": {name: turns[name][0]["threads"] for name in contestants},
        "one_images_per_second": images / seconds.median("one"),
        "two_images_per_second": images / seconds.median("two"),
        "ratio": seconds.ratio("one", "two"),
        "ratio_quartiles": [low, high],
        "cpu_ratio": cpu.ratio("one", "two"),
        "step_seconds": step,
        "gradient_bytes": sum(turns["exchanges"][0]["buckets"]),
        "all_reduce_seconds": exchange,
        "all_reduce_share": exchange / step,
        "wait_seconds": waits,
        "wait_share": waits / step,
        "seconds": seconds.seconds,
        "cpu_seconds": cpu.seconds,
    }
