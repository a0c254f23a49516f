"""Image files, decoded by Pillow to uint8 pixels by fixed rules."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Channels = Literal[1, 3]

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Endings of the names of image files, in lower case."""

ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width
TURNS = dict(enumerate(
    ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2
))  # fmt: skip
GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "F"))
NUMBER_MODES = frozenset(("I", "F"))  # 32 bits; the range of the values is in no header


class Header(NamedTuple):
    """Height and width of an image in pixels, after rotation by EXIF, and whether it is stored as gray."""

    height: int
    width: int
    gray: bool


def is_image(name: str) -> bool:
    """Return True if a file name ends as those of images do, such as ``a.JPEG``."""
    return Path(name).suffix.lower() in SUFFIXES


def read_header(path: str) -> Header:
    """Read the size and kind of an image without its pixels.

    Args:
        path: File.

    Raises:
        ValueError: If the file is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow turns TIFF by itself. Behind the pixels of a PNG, EXIF data would be found only by decoding them.
            known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = known and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            gray = image.mode in GRAY_MODES or image.mode.startswith("I;16")
    except Exception as error:  # Damaged files raise errors of many classes.
        raise _unreadable(path, error) from error
    return Header(width, height, gray) if turned else Header(height, width, gray)


def read_image(path: str, channels: Channels, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image. The first frame is read, upright by its EXIF orientation, as follows.

    - Transparent pixels are mixed with black.
    - 16-bit values are divided by 256 and rounded down.
    - Palettes, CMYK and other colours become RGB, and RGB becomes gray, as Pillow converts them.
    - Another size is reached by Pillow's bilinear filter, which averages where it shrinks; height and width change
      independently.

    Args:
        path: File.
        channels: 3 for RGB, 1 for gray.
        size: Height and width of the result in pixels; those of the file if None.

    Returns:
        ``(channels, H, W)``, uint8.

    Raises:
        ValueError: If the file is damaged or truncated, or has 32-bit values.
    """
    try:
        with Image.open(path) as opened:
            image = _to_channels(_to_eight_bits(opened), channels)
            turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))
        if turn is not None:
            image = image.transpose(Image.Transpose[turn])
        if size is not None and image.size != size[::-1]:
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        pixels = np.array(image)  # (H, W) or (H, W, 3)
    except Exception as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).movedim(-1, 0)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # as older releases open it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in NUMBER_MODES:
        raise ValueError("it has 32-bit values, whose range is unknown: save it with 8 bits")
    image.load()
    return image


def _to_channels(image: Image.Image, channels: Channels) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _unreadable(path: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of any known format"
    return ValueError(f"{path} can't be read as an image ({reason}): replace or remove it")
