import pytest
import torch
import torch.nn.functional as F

from rampart.attacks.random import make_generator
from rampart.data import draw_offsets, scale_images, shift_images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_shifted_as_its_images_one_by_one(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 5, 7), generator=generator).to(dtype)
    offsets = draw_offsets(40, 2, generator)
    shifted = shift_images(images, offsets, 2)
    assert shifted.dtype == dtype
    for image, (row, column), result in zip(images, offsets.tolist(), shifted, strict=True):
        assert torch.equal(result, F.pad(image, [2] * 4)[:, row : row + 5, column : column + 7])


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
