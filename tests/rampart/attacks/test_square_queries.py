"""Queries of Square as recorded steps of fixed shapes, with a tape in place of CUDA graphs."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import NormName, Square, rows, search, square_numbers
from rampart.kernels import Execution, recording
from rampart.networks import MNISTCNN
from tests.rampart.attacks.test_active import RowByRow, batch
from tests.rampart.kernels.tape import Tape

NORMS: list[NormName] = ["Linf", "L2"]
EPS = {"Linf": 0.01, "L2": 0.06}  # about half of the images are fooled


@pytest.fixture(autouse=True)
def _no_recordings() -> Iterator[None]:
    recording._RECORDINGS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a step that can't be recorded
        yield
    recording._RECORDINGS.clear()


def use_accelerator_mode(
    monkeypatch: pytest.MonkeyPatch, queries_at_once: int, record: bool, smallest: int = 3
) -> None:
    """Treat the CPU like an accelerator: few sizes of a state, seldom looked at, with random numbers drawn ahead."""
    for module in (rows, search, square_numbers):
        monkeypatch.setattr(module, "reads_are_free", lambda _device: False)
    monkeypatch.setattr(square_numbers, "QUERIES_AT_ONCE", queries_at_once)
    monkeypatch.setattr(rows, "SMALLEST", smallest)
    if record:
        monkeypatch.setitem(recording.RECORDERS, "cpu", Tape)


def attack_rows(attack: Square, share: float = 1, active: Tensor | None = None) -> tuple[RowByRow, Tensor]:
    model, images, labels = batch()
    adv = attack(model, images, labels, share * EPS[attack.norm], torch.Generator().manual_seed(2), active)
    return model, adv


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("active", [None, torch.arange(12) % 3 != 0], ids=["all", "some"])
def test_replays_of_fixed_shapes_give_what_the_cpu_gives(
    norm: NormName, active: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = Square(queries=45, restarts=2, norm=norm)
    model, expected = attack_rows(attack, active=active)
    _, images, labels = batch()
    robust = model(expected).argmax(1) == labels
    assert 0 < robust.sum() < len(images)
    for record in (False, True):
        use_accelerator_mode(monkeypatch, queries_at_once=1, record=record)
        assert torch.equal(attack_rows(attack, active=active)[1], expected)


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_drawn_ahead_depend_neither_on_replays_nor_on_active_images(
    norm: NormName, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, mask = Square(queries=45, norm=norm), torch.arange(12) % 3 == 0
    use_accelerator_mode(monkeypatch, queries_at_once=7, record=False)
    _, called = attack_rows(attack)
    use_accelerator_mode(monkeypatch, queries_at_once=7, record=True)
    assert torch.equal(attack_rows(attack)[1], called)
    assert torch.equal(attack_rows(attack, active=mask)[1][mask], called[mask])


@pytest.mark.parametrize("norm", NORMS)
def test_replays_on_a_network_give_what_calls_give(
    norm: NormName, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MNISTCNN().eval()
    labels = network(images).argmax(1)
    results = []
    for record in (False, True):
        use_accelerator_mode(monkeypatch, queries_at_once=5, record=record, smallest=100)
        adv = Square(queries=20, norm=norm)(network, images, labels, 3 * EPS[norm], torch.Generator().manual_seed(3))
        results.append(adv)
    assert torch.equal(*results)


def test_eps_side_queries_and_restarts_need_no_further_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = batch()
    for record in (False, True):
        use_accelerator_mode(monkeypatch, queries_at_once=7, record=record)
        for norm in NORMS:
            for queries, area, share, restarts in ((20, 0.8, 0.1, 1), (60, 0.3, 1, 2), (60, 0.8, 10, 1)):
                Square(queries=queries, area=area, restarts=restarts, norm=norm)(
                    model, images, labels, share * EPS[norm]
                )
    assert 2 <= len(recording._RECORDINGS[model]._recordings) <= 2 * len({12, 6, 3})


@pytest.mark.parametrize("norm", NORMS)
def test_no_query_waits_for_the_device(norm: NormName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are counted; a few more than looks at the rows would be one per query."""
    reads, drawn = 0, 0
    original, generate = Tensor.__int__, Tensor.random_

    def counted(tensor: Tensor) -> int:
        nonlocal reads
        reads += 1
        return original(tensor)

    def counted_draw(*args: Any, **kwargs: Any) -> Any:
        nonlocal drawn
        drawn += 1
        return generate(*args, **kwargs)

    monkeypatch.setattr(Tensor, "__int__", counted)
    monkeypatch.setattr(Tensor, "random_", counted_draw)
    use_accelerator_mode(monkeypatch, queries_at_once=64, record=True)
    attack_rows(Square(queries=200, norm=norm), share=0.01)
    assert reads == 1 + 200 // rows.CHECKED_EVERY
    # The side changes after 10 queries, and in l-inf after 50; 149 or 189 queries need numbers for three times 64.
    assert drawn == (3 * (1 + 1 + 3) if norm == "Linf" else 6 * (1 + 3))


@pytest.mark.gpu
@pytest.mark.parametrize("norm", NORMS)
def test_captured_queries_give_what_eager_ones_give(norm: NormName, images: Tensor) -> None:
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    network: nn.Module = MNISTCNN().eval().to(device)
    images = images.to(device)
    labels = network(images).argmax(1)
    results = []
    for capture in (False, True):
        generator = torch.Generator(images.device).manual_seed(3)
        with Execution(capture=capture).evaluation(images.device.type):
            results.append(Square(queries=100, norm=norm)(network, images, labels, 5 * EPS[norm], generator))
    equal = (results[0] == results[1]).flatten(1).all(1)
    assert equal.double().mean() >= 0.9
