"""Sources of an evaluation's images, batch by batch, so that memory holds one batch and not the whole data set."""

import contextlib
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Visitor: TypeAlias = Callable[[Tensor, Tensor], None]
"""A function of images ``(N, ...)``, float, and labels ``(N,)``, int64; it raises StopIteration to end the pass."""

Source: TypeAlias = Callable[[Visitor], None]
"""A function that calls a visitor with every batch of a data set: in each pass the same batches in the same order."""


def in_memory(images: Tensor, labels: Tensor) -> Source:
    """Return a source of one batch: images ``(N, ...)``, float, in [0, 1], and labels ``(N,)``, int64."""

    def source(visit: Visitor) -> None:
        with contextlib.suppress(StopIteration):
            visit(images, labels)

    return source


def visit_batches(
    source: Source, visit: Callable[[int, Tensor, Tensor], None], batch_size: int, num_images: int | None = None
) -> None:
    """Call a function with a source's images in batches of ``batch_size``, independent of the source's batch sizes.

    A change of the images' shape starts a new batch.

    Args:
        source: Source of the images.
        visit: Called with each batch: its zero-based number, images and labels.
        batch_size: Images per batch; the last batch, and the last one before a change of shape, may be smaller.
        num_images: Number of images to visit, from the first on; all if None.
    """
    pending: list[tuple[Tensor, Tensor]] = []
    seen = number = 0

    def flush() -> None:
        nonlocal pending, number
        if pending:
            images, labels = (torch.cat(parts) for parts in zip(*pending, strict=True))
            pending = [(images[batch_size:], labels[batch_size:])] if len(labels) > batch_size else []
            number += 1
            visit(number - 1, images[:batch_size], labels[:batch_size])

    def collect(images: Tensor, labels: Tensor) -> None:
        nonlocal seen
        left = len(labels) if num_images is None else num_images - seen
        images, labels = images[:left], labels[:left]
        seen += len(labels)
        if pending and pending[0][0].shape[1:] != images.shape[1:]:
            flush()
        if len(labels):
            pending.append((images, labels))
        while sum(len(labels) for _, labels in pending) >= batch_size:
            flush()
        if seen == num_images:
            raise StopIteration

    source(collect)
    flush()
