from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.attacks.random import make_generator
from rampart.data import Augmentation, TensorBatches, draw_flips, draw_offsets


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


@pytest.mark.parametrize("augmentation", [Augmentation(1), Augmentation(2, flip=True, border="edge")])
def test_an_epoch_resumes_with_the_next_batch_and_its_augmentation(augmentation: Augmentation) -> None:
    def make() -> TensorBatches:
        return TensorBatches(*random_images(), batch_size=5, shuffle=True, augmentation=augmentation)

    whole = make()
    whole.set_epoch(2)
    expected = [images for images, _, _ in whole]
    interrupted = make()
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    next(iterator)
    next(iterator)
    resumed = make()
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
    batches = TensorBatches(
        images, torch.zeros(900, dtype=torch.long), batch_size=900, shuffle=True, augmentation=Augmentation(2)
    )
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


def expected_images(augmentation: Augmentation, epoch: int = 2, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Return an epoch's images, augmented one by one, and their indices."""
    images, _ = random_images()
    order = torch.randperm(23, generator=make_generator("cpu", "order", seed, epoch))
    padding = augmentation.max_shift
    offsets = draw_offsets(23, padding, make_generator("cpu", "shifts", seed, epoch)).tolist()
    flips = draw_flips(23, make_generator("cpu", "flips", seed, epoch)).tolist()
    mode = {"black": "constant", "edge": "replicate"}[augmentation.border]
    result = []
    for image, (row, column), flip in zip(images.float(), offsets, flips, strict=True):
        crop = F.pad(image, [padding] * 4, mode)[:, row : row + 6, column : column + 5]
        result.append(crop.flip(2) if flip and augmentation.flip else crop)
    return torch.stack(result)[order] / 255, order


AUGMENTATIONS = [
    Augmentation(),
    Augmentation(2),
    Augmentation(flip=True),
    Augmentation(2, flip=True),
    Augmentation(3, flip=True, border="edge"),
]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("held_on", ["cpu", GPU])
@pytest.mark.parametrize("device", [None, "cpu", GPU])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_batches_are_equal_on_every_device(held_on: str, device: str | None, augmentation: Augmentation) -> None:
    images, labels = random_images()
    held = images.to(held_on), labels.to(held_on)
    batches = TensorBatches(*held, batch_size=5, shuffle=True, augmentation=augmentation, seed=5, device=device)
    batches.set_epoch(2)
    read = list(batches)
    assert {part.device.type for batch in read for part in batch} == {device or held_on}
    shown, classes, index = (torch.cat(parts).cpu() for parts in zip(*read, strict=True))
    expected, order = expected_images(augmentation)
    assert torch.equal(index, order)
    assert torch.equal(classes, labels[order])
    assert torch.equal(shown, expected)


@pytest.mark.parametrize("batch_size", [3, 11])
def test_an_image_is_augmented_alike_on_every_rank_and_in_every_batch(batch_size: int) -> None:
    expected, order = expected_images(AUGMENTATIONS[-1])
    for rank in (0, 1):
        batches = TensorBatches(
            *random_images(), batch_size, True, augmentation=AUGMENTATIONS[-1], seed=5, rank=rank, world_size=2
        )
        batches.set_epoch(2)
        shown, _, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert torch.equal(index, order[rank::2][:11])
        assert torch.equal(shown, expected[rank::2][:11])


@pytest.mark.parametrize("held_on", ["cpu", "meta"])
def test_the_host_reads_nothing_from_the_device(held_on: str) -> None:
    """Tensors on the meta device have no values that could be read."""
    images, labels = (part.to(held_on) for part in random_images())
    batches = TensorBatches(images, labels, batch_size=5, shuffle=True, augmentation=AUGMENTATIONS[-1], device="meta")
    read = list(batches)
    assert [len(shown) for shown, _, _ in read] == [5, 5, 5, 5, 3]
    assert {part.device.type for batch in read for part in batch} == {"meta"}
    assert {shown.dtype for shown, _, _ in read} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("held_on", ["cpu", "cuda"])
def test_the_host_does_not_wait_for_the_device(held_on: str) -> None:
    images, labels = (part.to(held_on) for part in random_images())
    batches = TensorBatches(images, labels, batch_size=5, shuffle=True, augmentation=AUGMENTATIONS[-1], device="cuda")
    list(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
