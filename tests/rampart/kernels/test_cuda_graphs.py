"""CUDA graphs on a GPU, and what the recorder does around a capture, with a substitute for one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.kernels import Execution, recording
from rampart.kernels.cuda_graphs import CUDAGraphs
from rampart.networks import MNISTCNN, ResNet18

gpu = pytest.mark.gpu


class FakeGPU:
    """Streams and captures as torch keeps them: the end of a broken capture raises, and leaves its stream set."""

    def __init__(self) -> None:
        self.main = self.stream = FakeStream("main")
        self.capturing, self.broken, self.ended, self.waits_are_errors = False, False, [False], 0
        self.undone: list[str] = []

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "") -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        before, self.stream, self.capturing = self.stream, stream, True
        try:
            yield
        finally:
            self.capturing = False
            if self.broken:
                self.broken = False
                raise RuntimeError("operation failed due to a previous error during capture")
            graph.ended, self.stream = True, before

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def wait_for_values(self) -> None:
        if self.waits_are_errors:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.broken = self.capturing
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")


class FakeStream:
    def __init__(self, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other: Any) -> None: ...


class FakeGraph:
    ended = False

    def pool(self) -> None:
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")

    def replay(self) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    gpu = FakeGPU()

    def set_mode(mode: Any) -> None:
        gpu.waits_are_errors = {"error": 2}.get(mode, mode)

    for name, value in {
        "device": lambda _: nullcontext(),
        "Stream": FakeStream,
        "stream": gpu.use,
        "current_stream": lambda *_: gpu.stream,
        "set_stream": lambda stream: setattr(gpu, "stream", stream),
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": FakeGraph,
        "graph": gpu.graph,
        "get_sync_debug_mode": lambda: gpu.waits_are_errors,
        "set_sync_debug_mode": set_mode,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *_, name=name: gpu.undone.append(name), raising=False)
    return gpu


def nothing() -> None: ...


def test_a_step_in_which_the_host_waits_is_refused_before_the_capture(fake: FakeGPU) -> None:
    with pytest.raises(RuntimeError, match="synchronizing"):
        CUDAGraphs(torch.device("cpu")).record(nothing, [fake.wait_for_values] * 2)
    assert fake.stream is fake.main
    assert fake.waits_are_errors == 0
    assert not fake.undone


def test_a_broken_capture_is_undone_and_its_cause_is_raised(fake: FakeGPU) -> None:
    recorder = CUDAGraphs(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorder.record(fake.wait_for_values, [nothing] * 2)
    assert fake.stream is fake.main
    assert fake.undone == ["_cuda_endAllocateToPool", "_cuda_releasePool"]


def test_a_capture_that_ends_after_an_error_needs_nothing_undone(fake: FakeGPU) -> None:
    def fail() -> None:
        raise TypeError("of the network")

    with pytest.raises(TypeError, match="of the network"):
        CUDAGraphs(torch.device("cpu")).record(fail, [nothing] * 2)
    assert fake.stream is fake.main
    assert not fake.undone


def attack_on_gpu(network: nn.Module, attack: PGD, size: int = 64, eps: float = 0.1, capture: bool = True) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (size, *getattr(network, "image_shape", (1, 28, 28)))
    images = torch.rand(shape, generator=generator, device="cuda")
    labels = torch.randint(10, (size,), generator=generator, device="cuda")
    with Execution(capture=None if capture else False).evaluation("cuda"):
        return attack(network, images, labels, eps, generator=generator)


@gpu
@pytest.mark.parametrize("kind", [MNISTCNN, ResNet18])
def test_replayed_steps_equal_called_ones(kind: Any) -> None:
    network = kind().cuda().eval()
    # One step: the difference of two signs would grow over several.
    for attack in (PGD(steps=1), PGD(steps=1, iterate="best"), PGD(steps=1, loss="margin")):
        called = attack_on_gpu(network, attack, capture=False)
        for _ in range(3):
            same = attack_on_gpu(network, attack) == called
        assert same.float().mean() > 0.999
    assert recording._RECORDINGS[network]._recordings


class Waiting(MNISTCNN):
    """A network that decides on the host."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if logits.sum().item() > 0 else -logits


@gpu
def test_the_process_is_usable_after_a_capture_that_fails() -> None:
    good, bad = MNISTCNN().cuda().eval(), Waiting().cuda().eval()
    expected = attack_on_gpu(good, PGD(steps=20))
    before = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="Waiting is attacked without CUDA graphs"):
        attack_on_gpu(bad, PGD(steps=20))
    device = torch.device("cuda", torch.cuda.current_device())
    recorder, number = CUDAGraphs(device), torch.ones((), device=device)
    with pytest.raises(RuntimeError):
        recorder.record(lambda: print(number.item()), [nothing] * 2)
    assert torch.cuda.current_stream() == before
    torch.nn.functional.dropout(torch.ones(8, device=device))  # the default generator
    assert (attack_on_gpu(good, PGD(steps=20)) == expected).float().mean() > 0.99
    fresh = MNISTCNN().cuda().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack_on_gpu(fresh, PGD(steps=20))


@gpu
def test_memory_does_not_grow_and_a_ramp_is_recorded_once() -> None:
    network = MNISTCNN().cuda().eval()
    attack_on_gpu(network, PGD(steps=16))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(200):
        attack_on_gpu(network, PGD(steps=16), eps=0.001 * (number + 1))
    torch.cuda.synchronize()
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    assert after[0] <= before[0] + 2**20
    assert after[1] <= before[1] + 2**25
    assert len(recording._RECORDINGS[network]._recordings) == 1


@gpu
def test_replays_wait_for_nothing() -> None:
    network = ResNet18().cuda().eval()
    for _ in range(2):  # The second attack records the refresh of the folded weights.
        attack_on_gpu(network, PGD(steps=16))
    torch.cuda.set_sync_debug_mode("error")
    try:
        attack_on_gpu(network, PGD(steps=16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
