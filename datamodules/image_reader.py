"""Many image files, read to one size and number of channels by several threads."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from datamodules.image_files import Channels, read_header, read_image

READ_AT_ONCE = 32  # images per task of a thread

Input = TypeVar("Input")
Output = TypeVar("Output")


class Format(NamedTuple):
    """Height and width of all images in pixels, and their channels."""

    size: tuple[int, int]
    channels: Channels


def find_format(paths: list[str], size: tuple[int, int] | None, channels: Channels | None) -> Format:
    """Return the size and channels of images; what is not given is found in the files' headers.

    Args:
        paths: Files, at least one.
        size: Height and width in pixels; None if all images have the same.
        channels: 1 or 3; None for 1 if all images are stored as gray, else 3.

    Raises:
        ValueError: If the size is None and images differ in it, or a header can't be read.
    """
    if size is not None and channels is not None:
        return Format(size, channels)
    chunks = [paths[start : start + READ_AT_ONCE] for start in range(0, len(paths), READ_AT_ONCE)]
    headers = list(chain.from_iterable(_run_in_threads(lambda chunk: [read_header(path) for path in chunk], chunks)))
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if size is None and header[:2] != first[:2]:
            raise ValueError(
                f"images differ in size, {paths[0]} has {first.height} x {first.width} pixels and {path} "
                f"{header.height} x {header.width}: set data.image_size, such as 32"
            )
    gray = all(header.gray for header in headers)
    return Format(size or first[:2], channels or (1 if gray else 3))


@dataclass(frozen=True)
class ImageReader:
    """Function that decodes images: indices ``(N,)``, int64, to ``(N, channels, H, W)``, uint8.

    Args:
        paths: Files.
        form: Size and channels of the result.
    """

    paths: list[str]
    form: Format

    def __call__(self, index: Tensor) -> Tensor:
        """Decode the images of some indices.

        Raises:
            ValueError: If one is damaged.
        """
        return torch.stack(
            [read_image(self.paths[each], self.form.channels, self.form.size) for each in index.tolist()]
        )

    def read_all(self) -> Tensor:
        """Decode all images, in threads.

        Raises:
            ValueError: If one is damaged.
        """
        images = torch.empty(len(self.paths), self.form.channels, *self.form.size, dtype=torch.uint8)

        def fill(index: Tensor) -> None:
            images[index] = self(index)

        _run_in_threads(fill, torch.split(torch.arange(len(self.paths)), READ_AT_ONCE))
        return images


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_in_threads(task: Callable[[Input], Output], inputs: Iterable[Input]) -> list[Output]:
    """Return a task's outputs in order; an error ends the other threads after their current input."""
    pool = ThreadPoolExecutor(count_cores())
    try:
        return list(pool.map(task, inputs))
    finally:
        pool.shutdown(cancel_futures=True)
