"""The images of an evaluation, shown a batch at a time, so that memory holds a batch and not the set."""

import contextlib
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Visitor: TypeAlias = Callable[[Tensor, Tensor], None]
"""Is given images ``(N, ...)``, float, and labels ``(N,)``, int64; raises StopIteration when it has seen enough."""

Source: TypeAlias = Callable[[Visitor], None]
"""Shows all batches of a set to a visitor, the same ones in the same order each time that it is called."""


def in_memory(images: Tensor, labels: Tensor) -> Source:
    """Make a source of images that are in memory anyway."""

    def show(visit: Visitor) -> None:
        with contextlib.suppress(StopIteration):
            visit(images, labels)

    return show


def visit_batches(
    source: Source, visit: Callable[[int, Tensor, Tensor], None], batch_size: int, num_images: int | None = None
) -> None:
    """Show a source's images in batches of one size, whatever the size of its own.

    Images of another shape than those before begin a new batch.

    Args:
        source: Shows the images.
        visit: Is given each batch: its number, from zero, images and labels.
        batch_size: Images of a batch; the last one may be smaller.
        num_images: Stop after so many; all if None.
    """
    held: list[tuple[Tensor, Tensor]] = []
    seen = number = 0

    def let_go(size: int) -> None:
        nonlocal held, number
        if held:
            images, labels = (torch.cat(parts) for parts in zip(*held, strict=True))
            held = [(images[size:], labels[size:])] if len(labels) > size else []
            number += 1
            visit(number - 1, images[:size], labels[:size])

    def take(images: Tensor, labels: Tensor) -> None:
        nonlocal seen
        left = len(labels) if num_images is None else num_images - seen
        images, labels = images[:left], labels[:left]
        seen += len(labels)
        if held and held[0][0].shape[1:] != images.shape[1:]:
            let_go(batch_size)
        if len(labels):
            held.append((images, labels))
        while sum(len(labels) for _, labels in held) >= batch_size:
            let_go(batch_size)
        if seen == num_images:
            raise StopIteration

    source(take)
    let_go(batch_size)
