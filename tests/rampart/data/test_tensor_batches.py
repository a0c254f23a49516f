from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.attacks.random import make_generator
from rampart.data import TensorBatches, draw_offsets


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


def random_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (23, 3, 6, 5), generator=generator, dtype=torch.uint8), torch.arange(23) % 10


def expected_images(max_shift: int, epoch: int = 2, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Return an epoch's images, shifted one by one, and their indices."""
    images, _ = random_images()
    order = torch.randperm(23, generator=make_generator("cpu", "order", seed, epoch))
    offsets = draw_offsets(23, max_shift, make_generator("cpu", "shifts", seed, epoch)).tolist()
    crops = [F.pad(image, [max_shift] * 4)[:, row : row + 6, column : column + 5]
             for image, (row, column) in zip(images, offsets, strict=True)]  # fmt: skip
    return torch.stack(crops)[order].float() / 255, order


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("held_on", ["cpu", GPU])
@pytest.mark.parametrize("device", [None, "cpu", GPU])
@pytest.mark.parametrize("max_shift", [0, 2])
def test_batches_are_equal_on_every_device(held_on: str, device: str | None, max_shift: int) -> None:
    images, labels = random_images()
    held = images.to(held_on), labels.to(held_on)
    batches = TensorBatches(*held, batch_size=5, shuffle=True, max_shift=max_shift, seed=5, device=device)
    batches.set_epoch(2)
    read = list(batches)
    assert {part.device.type for batch in read for part in batch} == {device or held_on}
    shown, classes, index = (torch.cat(parts).cpu() for parts in zip(*read, strict=True))
    expected, order = expected_images(max_shift)
    assert torch.equal(index, order)
    assert torch.equal(classes, labels[order])
    assert torch.equal(shown, expected)


@pytest.mark.parametrize("held_on", ["cpu", "meta"])
def test_the_host_reads_nothing_from_the_device(held_on: str) -> None:
    """Tensors on the meta device have no values that could be read."""
    images, labels = (part.to(held_on) for part in random_images())
    batches = TensorBatches(images, labels, batch_size=5, shuffle=True, max_shift=2, device="meta")
    read = list(batches)
    assert [len(shown) for shown, _, _ in read] == [5, 5, 5, 5, 3]
    assert {part.device.type for batch in read for part in batch} == {"meta"}
    assert {shown.dtype for shown, _, _ in read} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("held_on", ["cpu", "cuda"])
def test_the_host_does_not_wait_for_the_device(held_on: str) -> None:
    images, labels = (part.to(held_on) for part in random_images())
    batches = TensorBatches(images, labels, batch_size=5, shuffle=True, max_shift=2, device="cuda")
    list(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
