from typing import Any

import pytest
import torch
from torch import Tensor

from rampart.data.tensor_batches import TensorBatches


def make(n: int = 23, **settings: Any) -> TensorBatches:
    images = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return TensorBatches(images, torch.arange(n), **({"batch_size": 5} | settings))


def order(batches: TensorBatches) -> list[int]:
    return [i for _, _, index in batches for i in index.tolist()]


def test_batches_are_float_images_in_the_unit_interval() -> None:
    for images, labels, index in make():
        assert images.dtype == torch.float32
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), index)
        assert torch.equal(labels, index)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_sizes(drop_last: bool, sizes: list[int]) -> None:
    batches = make(drop_last=drop_last)
    assert [len(labels) for _, labels, _ in batches] == sizes
    assert len(batches) == len(sizes)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    batches = make(shuffle=True)
    first = order(batches)
    assert sorted(first) == list(range(23))
    assert order(batches) == first
    batches.set_epoch(1)
    assert order(batches) != first
    batches.set_epoch(0)
    torch.rand(3)
    assert order(batches) == first
    assert order(make(shuffle=True, seed=1)) != first
    assert order(make()) == list(range(23))


def test_evaluation_sees_each_image_once_whatever_the_world() -> None:
    for world in (1, 2, 3):
        seen = [i for rank in range(world) for i in order(make(rank=rank, world_size=world))]
        assert sorted(seen) == list(range(23))


def test_training_ranks_are_disjoint_and_take_the_same_number_of_steps() -> None:
    parts = [make(shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    seen = [order(part) for part in parts]
    assert len({len(part) for part in parts}) == 1
    assert [len(s) for s in seen] == [7, 7, 7]
    assert len({i for s in seen for i in s}) == 21


def test_goes_on_where_it_was() -> None:
    whole = make(shuffle=True, max_shift=1)
    whole.set_epoch(2)
    expected = [images for images, _, _ in whole]
    interrupted = make(shuffle=True, max_shift=1)
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    next(iterator)
    next(iterator)
    resumed = make(shuffle=True, max_shift=1)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.set_epoch(2)
    rest = [images for images, _, _ in resumed]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[2:], strict=True))
    assert len(list(resumed)) == 5


def test_a_look_at_the_first_batch_does_not_move_the_next_pass() -> None:
    batches = make()
    next(iter(batches))
    assert order(batches) == list(range(23))


@pytest.mark.parametrize("taken", [2, 5])
def test_the_epoch_after_a_saved_one_is_whole(taken: int) -> None:
    """An epoch may end early (limit_train_batches); what it left out is not taken from the next one."""
    saved = make(shuffle=True)
    for _ in zip(range(taken), saved, strict=False):
        pass
    resumed = make(shuffle=True)
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(1)
    assert sorted(order(resumed)) == list(range(23))


def centre_of_mass(images: Tensor) -> Tensor:
    return images.flatten(1).argmax(1)


def test_shifts_move_whole_images_by_every_amount_and_fill_with_black() -> None:
    images = torch.zeros(900, 2, 7, 9, dtype=torch.uint8)
    images[:, 0, 3, 4], images[:, 1, 3, 4] = 255, 51
    batches = TensorBatches(images, torch.zeros(900, dtype=torch.long), batch_size=900, shuffle=True, max_shift=2)
    shifted = next(iter(batches))[0]
    assert torch.equal(shifted[:, 0].flatten(1).argmax(1), shifted[:, 1].flatten(1).argmax(1))
    assert (shifted.flatten(2).sum(2) == torch.tensor([1.0, 0.2])).all()
    places = shifted[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9 - 3, places % 9 - 4
    assert {(int(r), int(c)) for r, c in zip(rows, columns, strict=True)} == {
        (r, c) for r in range(-2, 3) for c in range(-2, 3)
    }


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"world_size": 30}, {"drop_last": True, "batch_size": 24}])
def test_what_gives_no_batch_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch"):
        make(**settings)
