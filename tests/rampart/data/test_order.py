from typing import Any

import pytest
import torch

from rampart.attacks.random import make_generator
from rampart.data import EpochOrder


def make(size: int = 23, **settings: Any) -> EpochOrder:
    return EpochOrder(size, **({"batch_size": 5} | settings))


def indices(order: EpochOrder) -> list[int]:
    return [i for batch in order for i in batch.tolist()]


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_batches_have_the_given_size_and_the_last_one_the_rest(drop_last: bool, sizes: list[int]) -> None:
    order = make(drop_last=drop_last)
    assert [len(batch) for batch in order] == sizes
    assert len(order) == len(sizes)


def test_the_order_is_a_permutation_by_seed_and_epoch_alone() -> None:
    order = make(shuffle=True)
    first = indices(order)
    assert sorted(first) == list(range(23))
    assert indices(order) == first
    order.set_epoch(1)
    assert indices(order) != first
    order.set_epoch(0)
    torch.rand(3)
    assert indices(order) == first
    assert indices(make(shuffle=True, seed=1)) != first
    assert indices(make()) == list(range(23))


def test_orders_are_those_of_earlier_versions() -> None:
    """A run that is resumed or repeated with a newer version uses the images in the same order."""
    order = EpochOrder(11, 4, shuffle=True, seed=lambda: 7, rank=1, world_size=2)
    order.set_epoch(3)
    assert [batch.tolist() for batch in order] == [[2, 10, 7, 9], [1]]
    permutation = torch.randperm(11, generator=make_generator("cpu", "order", 7, 3))
    assert torch.equal(order.indices(), permutation[1::2])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_an_evaluation_by_the_batches_of_one_process(world: int, drop_last: bool) -> None:
    whole = [batch.tolist() for batch in make(drop_last=drop_last)]
    assert whole == [list(range(23))[start : start + 5] for start in range(0, 20 if drop_last else 23, 5)]
    numbers = []
    for rank in range(world):
        part = make(drop_last=drop_last, rank=rank, world_size=world)
        assert len(list(part)) == len(part)
        for batch, chosen in enumerate(part):
            place = part.locate(batch)
            assert chosen.tolist() == whole[place.number]
            assert (place.rank, place.first) == (0, int(chosen[0]))
            numbers.append(place.number)
    assert sorted(numbers) == list(range(len(whole)))


def test_fewer_batches_than_ranks_are_shared_by_image() -> None:
    parts = [make(rank=rank, world_size=6) for rank in range(6)]
    assert [indices(part) for part in parts] == [list(range(23))[rank::6] for rank in range(6)]
    assert [len(part) for part in parts] == [1] * 6
    assert [part.locate(0) for part in parts] == [(rank, 0, None) for rank in range(6)]


@pytest.mark.parametrize("world", [2, 3])
def test_training_batches_of_all_ranks_are_rows_of_the_batches_of_one_process(world: int) -> None:
    parts = [list(make(24, shuffle=True, rank=rank, world_size=world)) for rank in range(world)]
    for whole, *rows in zip(make(24, shuffle=True, batch_size=5 * world), *parts, strict=True):
        assert torch.equal(torch.stack(rows, 1).flatten(), whole)
    assert make(24, shuffle=True, rank=1, world_size=world).locate(3) == (1, 3, None)


def test_training_ranks_have_different_images_and_the_same_number_of_batches() -> None:
    parts = [make(shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    seen = [indices(part) for part in parts]
    assert len({len(part) for part in parts}) == 1
    assert [len(s) for s in seen] == [7, 7, 7]
    assert len({i for s in seen for i in s}) == 21


def test_an_epoch_resumes_after_the_batches_that_were_yielded() -> None:
    whole = make(shuffle=True)
    whole.set_epoch(2)
    expected = indices(whole)
    interrupted = make(shuffle=True)
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    next(iterator)
    next(iterator)
    assert interrupted.state_dict() == {"epoch": 2, "done": 2}
    resumed = make(shuffle=True)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.set_epoch(2)
    assert indices(resumed) == expected[10:]
    assert indices(resumed) == expected


@pytest.mark.parametrize("num_read", [2, 5])
def test_the_epoch_after_a_saved_one_is_whole(num_read: int) -> None:
    """An epoch may end early (limit_train_batches); the next one is not shortened by what was left out."""
    saved = make(shuffle=True)
    for _ in zip(range(num_read), saved, strict=False):
        pass
    resumed = make(shuffle=True)
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(1)
    assert sorted(indices(resumed)) == list(range(23))


@pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": 0, "done": -1}, {"epoch": 0.5, "done": 1}])
def test_a_state_of_another_form_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an epoch and a number of batches, got"):
        make().load_state_dict(state)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"world_size": 30}, {"drop_last": True, "batch_size": 24}])
def test_settings_that_give_no_batch_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch"):
        make(**settings)
