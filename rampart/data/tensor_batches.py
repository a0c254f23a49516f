"""Batches of an image set that is held in memory, by tensor indexing."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from rampart.attacks.random import generator_for


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
        seed: Of the orders and the shifts; the same in all processes. A function is asked at the start of each pass.
        rank: Zero-based, of this process; that of torch.distributed if None, or 0 without it.
        world_size: Number of processes; that of torch.distributed if None, or 1 without it.

    Raises:
        ValueError: If the batch size is below 1, there is no image for a rank, or images would be shifted away.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        max_shift: int = 0,
        seed: int | Callable[[], int] = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        height, width = images.shape[-2:]
        if not 0 <= max_shift < min(height, width):
            raise ValueError(
                f"max_shift must be at least 0 and below the images' height and width, {height} x {width}, or nothing "
                f"of an image would be left; got {max_shift}"
            )
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.drop_last, self.max_shift, self.seed = shuffle, drop_last, max_shift, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = self._done = self._done_in = 0
        self._resume_at = (0, 0)
        self._check_size()

    @property
    def rank(self) -> int:
        """Zero-based place of this process."""
        if self._rank is not None:
            return self._rank
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """Number of processes that share the images."""
        if self._world_size is not None:
            return self._world_size
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

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
        self._check_size()
        seed = self.seed() if callable(self.seed) else self.seed
        order = self._order(generator_for("cpu", "order", seed, self._epoch))
        by_shift = generator_for("cpu", "shifts", seed, self._epoch)
        shifts = torch.randint(2 * self.max_shift + 1, (len(self.images), 2), generator=by_shift)
        epoch, done = self._resume_at
        start, self._resume_at = done if epoch == self._epoch else 0, (0, 0)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            self._done, self._done_in = batch + 1, self._epoch
            images = self.images[index]
            if self.max_shift:
                images = _shifted(images, shifts[index], self.max_shift)
            yield images.float().div_(255), self.labels[index], index

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "done": self._done if self._done_in == self._epoch else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that had been handed out, if the next pass is of that same epoch.

        Raises:
            ValueError: If the state is not one that :meth:`state_dict` gives.
        """
        epoch, done = state.get("epoch"), state.get("done")
        if type(epoch) is not int or type(done) is not int or min(epoch, done) < 0:
            raise ValueError(f"the training batches' place must be an epoch and a number of batches, got {state}")
        self._resume_at = epoch, done

    def _check_size(self) -> None:
        if len(self.images) < self.world_size * (self.batch_size if self.drop_last else 1):
            raise ValueError(
                f"{len(self.images)} images give no batch of {self.batch_size} on each of {self.world_size} ranks; "
                "use a smaller batch_size or more images"
            )

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
