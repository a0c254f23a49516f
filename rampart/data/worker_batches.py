"""Batches of a data set that is read while training, by worker processes."""

import copy
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from rampart.data.augment import Augmentation
from rampart.data.order import EpochOrder
from rampart.data.tensor_batches import TensorBatches


class WorkerBatches(TensorBatches):
    """Batches bit-equal to those of :class:`TensorBatches`, from images that worker processes read.

    Order, shards, augmentation and resuming are the same, since workers only read the images of a batch that the order
    has chosen. A run that is resumed within an epoch reads none of the images before its next batch. The workers live
    until :meth:`close` or the end of the process.

    Args:
        read: Returns the images of some indices, ``(N,)``, int64, as ``(N, C, H, W)``, uint8: the same for the same
            indices. It is pickled where processes are started by spawn. Its ValueError is raised in this process.
        shape: ``(C, H, W)`` of the images.
        labels: ``(N,)``, int64, on the CPU.
        batch_size: Images per batch and rank; the last batch may be smaller.
        shuffle: Choose a new random order for each epoch.
        drop_last: Leave out a smaller last batch.
        augmentation: Random shifts and flips of the images, new in each epoch; none if None.
        seed: Seed of the orders and of the augmentation; the same in all processes. A function is called at the start
            of each pass.
        rank: Zero-based rank of this process; that of torch.distributed if None, or 0 without it.
        world_size: Number of processes; that of torch.distributed if None, or 1 without it.
        device: Device of the batches; the CPU if None.
        num_workers: Number of worker processes; with 0, this process reads the images.

    Raises:
        ValueError: If a number is out of range, as for TensorBatches, or ``num_workers`` is negative.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int],
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        augmentation: Augmentation | None = None,
        seed: int | Callable[[], int] = 0,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | None = None,
        num_workers: int = 0,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        placeholder = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(labels), *shape)  # one pixel in memory
        super().__init__(
            placeholder, labels, batch_size, shuffle, drop_last, augmentation, seed, rank, world_size, device
        )
        self._loader = DataLoader[Tensor](
            _Images(read),
            batch_sampler=_NextBatches(self.order),  # type: ignore[arg-type]  # tensors in place of lists
            collate_fn=_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else each pass would change torch's random state
        )

    def close(self) -> None:
        """End the workers; another pass starts new ones."""
        # Left to Python, which may delete the workers' queues first, this would take five seconds per worker.
        iterator, self._loader._iterator = self._loader._iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()

    def _choose_images(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # The workers read ahead in a copy of the order: the order itself counts the batches that have been yielded.
        for place, images in zip(self.order, self._loader, strict=True):
            if isinstance(images, str):
                raise ValueError(images)
            yield images, self.labels.index_select(0, place), place


class _NextBatches:
    """Batches of indices of the next pass, without its being counted."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(copy.copy(self.order))


class _Images(Dataset[Tensor]):
    """Batches of images; the message of an error in place of a batch, since a worker's errors have many lines."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        self.read = read

    def __getitems__(self, place: Tensor) -> Tensor | str:
        try:
            return self.read(place)
        except ValueError as error:
            return str(error)


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """Leave Ctrl-C and the like to the main process, which finishes its batch and ends the workers by SIGTERM."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
