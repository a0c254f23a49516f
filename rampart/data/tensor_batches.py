"""Batches of a data set in memory, by tensor indexing."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rampart.data.augment import Augmentation, scale_images
from rampart.data.batch import Batch
from rampart.data.order import EpochOrder
from rampart.data.placement import move_tensor


class TensorBatches:
    """Iterable of batches ``(images, labels, index)``, without worker processes or Python code per image.

    A batch is a :class:`Batch`: images ``(N, C, H, W)``, float32, in [0, 1]; labels ``(N,)``, int64; ``index`` is the
    zero-based index of each image in the data set, ``(N,)``, int64. A drop-in for DataLoader in Lightning that shards
    itself across ranks: in training all ranks have the same number of batches, in evaluation each image is on exactly
    one rank. The order of an epoch depends on seed and epoch alone, and a run that is resumed within an epoch continues
    with the next batch.

    Batches are the same on every device. Images are chosen where they are held, moved as uint8 if they are held
    elsewhere, and augmented and scaled on the batches' device, all without waiting for that device.

    Args:
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64, on the images' device.
        batch_size: Images per batch and rank; the last batch may be smaller.
        shuffle: Choose a new random order for each epoch.
        drop_last: Leave out a smaller last batch.
        augmentation: Random shifts and flips of the images, new in each epoch; none if None.
        seed: Seed of the orders and of the augmentation; the same in all processes. A function is called at the start
            of each pass.
        rank: Zero-based rank of this process; that of torch.distributed if None, or 0 without it.
        world_size: Number of processes; that of torch.distributed if None, or 1 without it.
        device: Device of the batches; that of the images if None.

    Raises:
        ValueError: If the batch size is below 1, there are too few images for a batch on each rank, or the
            augmentation's ``max_shift`` is not below the images' height and width.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        augmentation: Augmentation | None = None,
        seed: int | Callable[[], int] = 0,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.order = EpochOrder(len(images), batch_size, shuffle, drop_last, seed, rank, world_size, images.device)
        self.images, self.labels, self.augmentation = images, labels, augmentation or Augmentation()
        self.augmentation.check_size(*images.shape[-2:])
        self.device = images.device if device is None else torch.device(device)

    batch_sampler = None
    """Lightning reads this attribute of each loader that has a ``sampler``."""

    @property
    def sampler(self) -> EpochOrder:
        """The order; Lightning calls its ``set_epoch``."""
        return self.order

    @property
    def batch_size(self) -> int:
        """Images per batch and rank."""
        return self.order.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the zero-based epoch of the next pass."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        augment = self.augmentation.draw(len(self.images), self.order.generator, self.device)
        for chosen in self._choose_images():
            images, labels, index = (move_tensor(part, self.device) for part in chosen)
            yield Batch(scale_images(augment(images, index)), labels, index)  # type: ignore[misc]  # has labels and index

    def _choose_images(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images, labels and indices of each batch, where they are held."""
        for place in self.order:
            yield self.images.index_select(0, place), self.labels.index_select(0, place), place

    def state_dict(self) -> dict[str, Any]:
        """Return ``epoch``, zero-based, and ``done``, the number of its batches that have been yielded."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume an epoch: the next pass, if it is of the same epoch, skips the batches that were yielded before.

        Raises:
            ValueError: If the state is not of the form that :meth:`state_dict` returns.
        """
        self.order.load_state_dict(state)
