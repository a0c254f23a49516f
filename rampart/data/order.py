"""Order of a data set's images in each epoch, shared between processes and resumable."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from rampart.attacks.random import make_generator
from rampart.data.placement import move_tensor


class BatchPlace(NamedTuple):
    """Place of a batch in an evaluation, which decides the random numbers of its attacks.

    Attributes:
        rank: Zero-based rank whose batches are counted; 0 if the ranks share whole batches.
        number: Zero-based number of the batch among them.
        first: Zero-based position of its first image in the order; None if the batch has not only successive images.
    """

    rank: int
    number: int
    first: int | None = None


class EpochOrder:
    """Iterable of batches of indices into a data set: this rank's share of each epoch's order, resumable.

    The order depends on seed and epoch alone. With ``shuffle``, as for training, rank r has the images
    ``r::world_size`` of the order: together, the ranks' batches are those of one process with ``world_size`` times the
    batch size. All ranks have the same number of images, so up to ``world_size - 1`` are left out. Without, as for
    evaluation, each image is on exactly one rank: rank r has the batches ``r::world_size`` of one process with the same
    batch size or, if there are fewer batches than ranks, the images ``r::world_size``.

    Args:
        size: Number of images in the data set.
        batch_size: Images per batch and rank; the last batch may be smaller.
        shuffle: Choose a new random order for each epoch.
        drop_last: Leave out a smaller last batch.
        seed: Seed of the orders; the same in all processes. A function is called at the start of each pass.
        rank: Zero-based rank of this process; that of torch.distributed if None, or 0 without it.
        world_size: Number of processes; that of torch.distributed if None, or 1 without it.
        device: Device of the indices, which are moved there once per epoch.

    Raises:
        ValueError: If the batch size is below 1, or there are too few images for a batch on each rank.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | Callable[[], int] = 0,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.size, self.batch_size, self.shuffle, self.drop_last, self.seed = size, batch_size, shuffle, drop_last, seed
        self._rank, self._world_size, self.device = rank, world_size, torch.device(device)
        self.epoch = self._done = self._done_in = 0
        self._resume_at = (0, 0)
        self._check_size()

    @property
    def rank(self) -> int:
        """Zero-based rank of this process."""
        if self._rank is not None:
            return self._rank
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """Number of processes that share the images."""
        if self._world_size is not None:
            return self._world_size
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def set_epoch(self, epoch: int) -> None:
        """Set the zero-based epoch of the next pass."""
        self.epoch = epoch

    @property
    def shares_batches(self) -> bool:
        """True if each batch is one of the batches of a single process, as in evaluation with enough batches."""
        return not self.shuffle and self._count_batches(self.size) >= self.world_size

    def locate(self, batch: int) -> BatchPlace:
        """Return the place of one of this rank's batches: its number in the order of a single process, if it is there.

        Args:
            batch: Zero-based number of the batch on this rank.
        """
        if not self.shares_batches:
            return BatchPlace(self.rank, batch)
        number = self.rank + self.world_size * batch
        return BatchPlace(0, number, number * self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        if self.shares_batches:
            return len(range(self.rank, self._count_batches(self.size), self.world_size))
        return self._count_batches(self._images_of_rank())

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the indices of each batch, ``(batch_size,)``, int64, from the resumed position on."""
        self._check_size()
        shard = move_tensor(self.indices(), self.device)
        epoch, done = self._resume_at
        start, self._resume_at = done if epoch == self.epoch else 0, (0, 0)
        for batch in range(start, len(self)):
            self._done, self._done_in = batch + 1, self.epoch
            yield shard[batch * self.batch_size : (batch + 1) * self.batch_size]

    def indices(self) -> Tensor:
        """Return the indices of this rank's images in the epoch's order, int64, on the CPU."""
        order = (
            torch.randperm(self.size, generator=self.generator("order")) if self.shuffle else torch.arange(self.size)
        )
        if self.shares_batches:
            return torch.cat(torch.split(order, self.batch_size)[self.rank :: self.world_size])
        return order[self.rank :: self.world_size][: self._images_of_rank()]

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator whose random numbers depend on purpose, seed and epoch alone."""
        seed = self.seed() if callable(self.seed) else self.seed
        return make_generator("cpu", purpose, seed, self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return ``epoch``, zero-based, and ``done``, the number of its batches that have been yielded."""
        return {"epoch": self.epoch, "done": self._done if self._done_in == self.epoch else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume an epoch: the next pass, if it is of the same epoch, skips the batches that were yielded before.

        Raises:
            ValueError: If the state is not of the form that :meth:`state_dict` returns.
        """
        epoch, done = state.get("epoch"), state.get("done")
        if type(epoch) is not int or type(done) is not int or min(epoch, done) < 0:
            raise ValueError(f"the training batches' position must be an epoch and a number of batches, got {state}")
        self._resume_at = epoch, done

    def _check_size(self) -> None:
        if self.size < self.world_size * (self.batch_size if self.drop_last else 1):
            raise ValueError(
                f"{self.size} images give no batch of {self.batch_size} on each of {self.world_size} ranks; "
                "use a smaller batch_size or more images"
            )

    def _count_batches(self, images: int) -> int:
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def _images_of_rank(self) -> int:
        # Ranks that train must take the same number of steps, so they leave up to world_size - 1 images out.
        return self.size // self.world_size if self.shuffle else len(range(self.rank, self.size, self.world_size))
