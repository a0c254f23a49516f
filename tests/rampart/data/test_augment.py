from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rampart.attacks.random import make_generator
from rampart.data import Augmentation, Border, draw_flips, draw_offsets, flip_images, scale_images, shift_images


@pytest.mark.parametrize(("border", "mode"), [("black", "constant"), ("edge", "replicate")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_shifted_as_its_images_one_by_one(dtype: torch.dtype, border: Border, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 5, 7), generator=generator).to(dtype)
    offsets = draw_offsets(40, 2, generator)
    shifted = shift_images(images, offsets, 2, border)
    assert shifted.dtype == dtype
    for image, (row, column), result in zip(images, offsets.tolist(), shifted, strict=True):
        padded = F.pad(image.float(), [2] * 4, mode).to(dtype)
        assert torch.equal(result, padded[:, row : row + 5, column : column + 7])


def test_the_middle_offset_leaves_an_image_unmoved() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(shift_images(images, torch.full((3, 2), 2), 2), images)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_divided_by_255_with_correct_rounding(device: str, dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    quotients = torch.tensor([pixel / 255 for pixel in range(256)], dtype=torch.float64).to(dtype)
    assert torch.equal(scale_images(pixels.to(device), dtype).cpu(), quotients)
    assert pixels.tolist() == list(range(256))


def test_offsets_are_those_of_earlier_versions_and_cover_their_range() -> None:
    generator = make_generator("cpu", "shifts", 7, 3)
    assert draw_offsets(4, 2, generator).tolist() == [[0, 0], [1, 4], [3, 4], [2, 3]]
    assert draw_offsets(500, 2, generator).unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_flip_mirrors_the_chosen_images_and_is_its_own_inverse(dtype: torch.dtype) -> None:
    images = torch.randint(256, (4, 3, 5, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    flips = torch.tensor([True, False, False, True])
    flipped = flip_images(images, flips)
    assert flipped.dtype == dtype
    for image, flip, result in zip(images, flips, flipped, strict=True):
        assert torch.equal(result, image[:, :, torch.arange(5, -1, -1)] if flip else image)
    assert torch.equal(flip_images(flipped, flips), images)


def test_about_half_of_the_images_are_flipped_others_in_each_epoch() -> None:
    first, second = (draw_flips(10_000, make_generator("cpu", "flips", 7, epoch)) for epoch in (0, 1))
    for share in (first.float().mean(), second.float().mean(), (first == second).float().mean()):
        assert 0.48 < share < 0.52


@pytest.mark.parametrize("settings", [{"max_shift": -1}, {"border": "grey"}])
def test_an_unknown_augmentation_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} must be .*, got"):
        Augmentation(**settings)
