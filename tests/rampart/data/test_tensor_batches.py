from typing import Any

import torch

from rampart.data import TensorBatches


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


def test_an_epoch_resumes_with_the_next_batch_and_its_shifts() -> None:
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


def test_reading_only_the_first_batch_does_not_affect_the_next_pass() -> None:
    batches = make()
    next(iter(batches))
    assert order(batches) == list(range(23))


def test_shifts_cover_all_amounts_keep_channels_together_and_fill_with_black() -> None:
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
