"""Augmentation of whole batches of images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_offsets(size: int, max_shift: int, generator: torch.Generator) -> Tensor:
    """Return a random offset for each of ``size`` images: ``(size, 2)``, rows and columns, int64, in [0, 2 max_shift].

    An offset of ``max_shift`` leaves the image unmoved.
    """
    return torch.randint(2 * max_shift + 1, (size, 2), generator=generator)


def shift_images(images: Tensor, offsets: Tensor, max_shift: int) -> Tensor:
    """Shift each image by its own number of pixels; pixels that come in at the border are 0 (black).

    Args:
        images: ``(N, C, H, W)``, any dtype.
        offsets: ``(N, 2)``, int64, in [0, 2 max_shift]: first row and column of the crop of the padded image. The image
            moves up by ``offsets[:, 0] - max_shift`` pixels and left by ``offsets[:, 1] - max_shift``.
        max_shift: Pixels of padding at each border.

    Returns:
        The shifted images, of the shape and dtype of ``images``.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, [max_shift] * 4)
    rows = offsets[:, 0, None] + torch.arange(height)  # (N, H)
    columns = offsets[:, 1, None] + torch.arange(width)  # (N, W)
    image = torch.arange(len(images))[:, None, None]
    # Indexing with the channels' slice between tensors puts the channels last: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
