"""Augmentation of whole batches of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.data.placement import move_tensor

Border = Literal["black", "edge"]


@dataclass(frozen=True)
class Augmentation:
    """Random shifts and flips of training images, new in each epoch, as operations on whole batches.

    The random numbers of all images of an epoch are drawn at once, on the CPU: an image's shift and flip do not depend
    on its batch, rank or device, and an epoch that is resumed repeats them.

    Args:
        max_shift: Largest shift in each direction, in pixels; 0 for no shifts. A random crop with padding 4 is a shift
            by up to 4.
        flip: Mirror each image left to right with probability 1/2, after its shift.
        border: Pixels that come in at the border: ``black``, or copies of the nearest pixel of the image's ``edge``.

    Raises:
        ValueError: If ``max_shift`` is negative or ``border`` is unknown.
    """

    max_shift: int = 0
    flip: bool = False
    border: Border = "black"

    def __post_init__(self) -> None:
        if self.max_shift < 0:
            raise ValueError(f"max_shift must be at least 0, got {self.max_shift}")
        if self.border not in ("black", "edge"):
            raise ValueError(f"border must be black or edge, got {self.border!r}")

    def check_size(self, height: int, width: int) -> None:
        """Check that a part of each image is left.

        Args:
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Raises:
            ValueError: If ``max_shift`` is not below height and width.
        """
        if self.max_shift >= min(height, width):
            raise ValueError(
                f"max_shift must be at least 0 and below the images' height and width, {height} x {width}, or nothing "
                f"of an image would be left; got {self.max_shift}"
            )

    def draw(
        self, size: int, generator: Callable[[str], torch.Generator], device: torch.device
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Draw the shifts and flips of an epoch.

        Args:
            size: Number of images in the data set.
            generator: Returns a CPU generator for a purpose, such as :meth:`EpochOrder.generator`.
            device: Device of the batches.

        Returns:
            A function of a batch's images ``(N, C, H, W)``, any dtype, and their indices in the data set ``(N,)``,
            int64, both on the device: returns the augmented images, of the same shape and dtype.
        """
        offsets = flips = None
        if self.max_shift:
            offsets = move_tensor(draw_offsets(size, self.max_shift, generator("shifts")), device)
        if self.flip:
            flips = move_tensor(draw_flips(size, generator("flips")), device)

        def augment(images: Tensor, index: Tensor) -> Tensor:
            if offsets is not None:
                images = shift_images(images, offsets[index], self.max_shift, self.border)
            return images if flips is None else flip_images(images, flips[index])

        return augment


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


def shift_images(images: Tensor, offsets: Tensor, max_shift: int, border: Border = "black") -> Tensor:
    """Shift each image by its own number of pixels.

    Args:
        images: ``(N, C, H, W)``, any dtype, on any device.
        offsets: ``(N, 2)``, int64, on the images' device, in [0, 2 max_shift]: first row and column of the crop of the
            padded image. The image moves up by ``offsets[:, 0] - max_shift`` pixels and left by ``offsets[:, 1] -
            max_shift``.
        max_shift: Pixels of padding at each border.
        border: Pixels that come in at the border: ``black`` (0), or copies of the nearest pixel of the image's
            ``edge``.

    Returns:
        The shifted images, of the shape and dtype of ``images``, with the channels last in memory.
    """
    height, width = images.shape[-2:]
    padded = images.movedim(1, -1)
    if border == "black":
        padded = F.pad(padded, [0, 0, *[max_shift] * 4])  # (N, H + 2 max_shift, W + 2 max_shift, C)
    else:  # By indices: F.pad does not replicate uint8.
        rows, columns = (
            torch.arange(-max_shift, size + max_shift, device=images.device).clamp(0, size - 1)
            for size in (height, width)
        )
        padded = padded[:, rows][:, :, columns]
    crops = padded.unfold(1, height, 1).unfold(2, width, 1)  # (N, rows, columns, C, H, W), a view of all crops
    return crops[torch.arange(len(images), device=images.device), offsets[:, 0], offsets[:, 1]]


def draw_flips(size: int, generator: torch.Generator) -> Tensor:
    """Return for each of ``size`` images if it is flipped: ``(size,)``, bool, True with probability 1/2."""
    return torch.randint(2, (size,), generator=generator).bool()


def flip_images(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror chosen images left to right.

    Args:
        images: ``(N, C, H, W)``, any dtype, on any device.
        flips: ``(N,)``, bool, on the images' device: True for an image to flip.

    Returns:
        The images, of the shape and dtype of ``images``.
    """
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
