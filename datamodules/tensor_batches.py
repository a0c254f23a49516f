"""Batches of an image set that is held in memory, by tensor indexing."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class TensorBatches:
    """An iterable of batches ``(images, labels, index)``; no worker processes and no per-image Python.

    Images come as ``(N, C, H, W)``, float32, in [0, 1]; the index is each image's place in the set.
    Lightning takes it as it takes a DataLoader. It shards itself over ranks: in training each rank has the
    same number of batches, in evaluation each image is seen by exactly one rank. The order of an epoch depends
    on seed and epoch alone, and a run that is resumed within an epoch goes on with the next batch.

    Args:
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64.
        batch_size: Images a batch and rank; the last one may be smaller.
        shuffle: Draw a new order each epoch.
        drop_last: Leave out a smaller last batch.
        max_shift: Move each image by up to this many pixels in both directions, drawn anew each epoch; what
            comes in at the border is black. Augmentation, for training.
        seed: Of the orders and the shifts.
        rank: Zero-based, of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If the batch size is below 1 or there is no image for a rank.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        max_shift: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(images) < world_size * (batch_size if drop_last else 1):
            raise ValueError(
                f"{len(images)} images give no batch of {batch_size} on each of {world_size} ranks; "
                "use a smaller batch_size or more images"
            )
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.drop_last, self.max_shift, self.seed = shuffle, drop_last, max_shift, seed
        self.rank, self.world_size = rank, world_size
        self._epoch = self._done = 0
        self._resume_at = (0, 0)

    batch_sampler = None
    """Lightning asks every loader that has a ``sampler`` for this too."""

    @property
    def sampler(self) -> "TensorBatches":
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the zero-based epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        size = self._images_of_rank()
        return size // self.batch_size if self.drop_last else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self._epoch)
        order = self._order(generator)
        shifts = torch.randint(2 * self.max_shift + 1, (len(self.images), 2), generator=generator)
        epoch, done = self._resume_at
        start, self._resume_at = done if epoch == self._epoch else 0, (0, 0)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            self._done = batch + 1
            images = self.images[index]
            if self.max_shift:
                images = _shifted(images, shifts[index], self.max_shift)
            yield images.float().div_(255), self.labels[index], index

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that had been handed out, if the next pass is of that same epoch."""
        self._resume_at = int(state["epoch"]), int(state["done"])

    def _images_of_rank(self) -> int:
        total, world = len(self.images), self.world_size
        # Ranks that train must take the same number of steps, so they leave up to world_size - 1 images out.
        return total // world if self.shuffle else len(range(self.rank, total, world))

    def _order(self, generator: torch.Generator) -> Tensor:
        total = len(self.images)
        order = torch.randperm(total, generator=generator) if self.shuffle else torch.arange(total)
        return order[self.rank :: self.world_size][: self._images_of_rank()]


def _shifted(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Cut each image ``(H, W)`` out of its padded self at its own place ``(N, 2)``, in [0, 2 max_shift]."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [max_shift] * 4)
    rows = shifts[:, 0, None] + torch.arange(height)  # (N, H)
    columns = shifts[:, 1, None] + torch.arange(width)  # (N, W)
    image = torch.arange(len(images))[:, None, None]
    # The advanced indices stand apart, so the channels come last.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
