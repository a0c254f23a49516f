"""Augmentation of whole batches of images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_images(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert pixels to float in [0, 1]: the quotient by 255, rounded correctly on every device.

    Args:
        images: Any shape, uint8.
        dtype: Dtype of the result.
    """
    # By a tensor: GPUs divide by a Python number as they multiply by its rounded reciprocal, which is less exact.
    return images.to(dtype).div_(torch.full((), 255, dtype=dtype, device=images.device))


def draw_offsets(size: int, max_shift: int, generator: torch.Generator) -> Tensor:
    """Return a random offset for each of ``size`` images: ``(size, 2)``, rows and columns, int64, in [0, 2 max_shift].

    An offset of ``max_shift`` leaves the image unmoved.
    """
    return torch.randint(2 * max_shift + 1, (size, 2), generator=generator)


def shift_images(images: Tensor, offsets: Tensor, max_shift: int) -> Tensor:
    """Shift each image by its own number of pixels; pixels that come in at the border are 0 (black).

    Args:
        images: ``(N, C, H, W)``, any dtype, on any device.
        offsets: ``(N, 2)``, int64, on the images' device, in [0, 2 max_shift]: first row and column of the crop of the
            padded image. The image moves up by ``offsets[:, 0] - max_shift`` pixels and left by ``offsets[:, 1] -
            max_shift``.
        max_shift: Pixels of padding at each border.

    Returns:
        The shifted images, of the shape and dtype of ``images``, with the channels last in memory.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images.movedim(1, -1), [0, 0, *[max_shift] * 4])  # (N, H + 2 max_shift, W + 2 max_shift, C)
    crops = padded.unfold(1, height, 1).unfold(2, width, 1)  # (N, rows, columns, C, H, W), a view of all crops
    return crops[torch.arange(len(images), device=images.device), offsets[:, 0], offsets[:, 1]]
