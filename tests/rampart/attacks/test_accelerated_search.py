"""Searches on an accelerator: fixed shapes, recorded steps, few host waits; with a tape in place of CUDA graphs."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rampart.attacks import APGD, FAB, rows, search
from rampart.attacks.search import Search
from rampart.kernels import recording
from rampart.networks import MNISTCNN
from tests.rampart.attacks.test_active import RowByRow
from tests.rampart.kernels.tape import READS, Tape

SEARCHES: list[Search] = [
    APGD(steps=25),
    APGD(steps=25, norm="L2", loss="margin", restarts=2),
    APGD(steps=12, targets=3),
    FAB(steps=20, targets=2),
    FAB(steps=9, targets=2, restarts=2, norm="L2"),
]


def use_accelerator_mode(monkeypatch: pytest.MonkeyPatch, smallest: int = 2, record: bool = True) -> None:
    """Treat the CPU like an accelerator, where states have few sizes and are looked at seldom."""
    for module in (rows, search):
        monkeypatch.setattr(module, "reads_are_free", lambda _device: False)
    monkeypatch.setattr(rows, "CHECKED_EVERY", 3)
    monkeypatch.setattr(rows, "SMALLEST", smallest)
    if record:
        monkeypatch.setitem(recording.RECORDERS, "cpu", Tape)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    recording._RECORDINGS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a step that can't be recorded, for example because it reads a value
        yield
    recording._RECORDINGS.clear()


def attack_rows(attack: Search, model: RowByRow, eps: float, active: Tensor | None = None) -> Tensor:
    images = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    labels = model(images).argmax(1)
    labels[4] = (labels[4] + 1) % 5
    return attack(model, images, labels, eps, torch.Generator().manual_seed(2), active)


def count_recordings(model: Any) -> int:
    return len(recording._RECORDINGS[model]._recordings)


@pytest.mark.parametrize("attack", SEARCHES, ids=lambda attack: attack.name)
@pytest.mark.parametrize(("share", "active"), [(0.5, None), (3, torch.arange(12) % 3 != 0)], ids=["all", "some"])
def test_fixed_shapes_and_replays_change_no_digit(
    attack: Search, share: float, active: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, eps = RowByRow(), share * (0.02 if attack.norm == "Linf" else 0.1)
    expected = attack_rows(attack, model, eps, active)
    use_accelerator_mode(monkeypatch, record=False)
    assert torch.equal(attack_rows(attack, model, eps, active), expected)
    use_accelerator_mode(monkeypatch)
    for _ in range(2):
        assert torch.equal(attack_rows(attack, model, eps, active), expected)
    assert count_recordings(model) >= 1


@pytest.mark.parametrize("attack", SEARCHES, ids=lambda attack: attack.name)
def test_replays_on_a_network_give_what_calls_give(
    attack: Search, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images, eps = MNISTCNN().eval(), images[:3], 0.003 if attack.norm == "Linf" else 0.05
    labels = network(images).argmax(1)
    results = []
    for record in (False, True):
        use_accelerator_mode(monkeypatch, smallest=100, record=record)
        results.append(attack(network, images, labels, eps, torch.Generator().manual_seed(2)))
    assert torch.equal(*results)
    assert count_recordings(network) == 1


def test_recordings_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each kind of step and size of the state: not for each eps, run, number of steps or mask."""
    use_accelerator_mode(monkeypatch, smallest=6)
    model = RowByRow()
    images = torch.rand(17, 1, 6, 6).double()
    for eps in (0.005, 0.02):
        for attack in (APGD(steps=8, restarts=2), APGD(steps=4, targets=4), FAB(steps=4, targets=4)):
            for batch in (images[:12], images[12:]):
                labels = model(batch).argmax(1)
                for active in (None, torch.arange(len(batch)) % 2 == 0):
                    attack(model, batch, labels, eps, active=active)
    assert count_recordings(model) == 3 * len({12, 6, 5})


class CountedReads(TorchDispatchMode):
    """Counts operations whose results the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attack", [APGD, FAB])
def test_the_host_waits_seldom(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_accelerator_mode(monkeypatch, record=False)
    counts = {}
    for runs in (1, 2):
        for steps in (15, 30):
            with CountedReads() as reads:
                attack_rows(attack(steps=steps, targets=runs), RowByRow(), 1e-5)
            counts[runs, steps] = reads.count
    assert counts[1, 30] - counts[1, 15] == 15 / 3
    assert counts[2, 30] - counts[1, 30] == 2 + 30 / 3  # before each run, whether any image is left
