"""Know of a loader which images it repeats, and refuse several at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset


def check_one_loader(loaders: Any, stage: str, unpacked: bool = True) -> None:
    """Refuse several loaders, whose images would be counted as one set.

    Args:
        loaders: As a data module's hook returns them.
        stage: Names the hook, such as ``"test"``.
        unpacked: Whether a collection of one is as good as its loader; in training its batches are collections too.

    Raises:
        ValueError: If it is a collection of more than one, or any where it can't be unpacked.
    """
    if isinstance(loaders, (Mapping, Sequence)) and (len(loaders) > 1 or not unpacked):
        raise ValueError(
            f"{stage}_dataloader must return one loader, got a {type(loaders).__name__} of {len(loaders)}: join sets "
            "(torch.utils.data.ConcatDataset), or return one at a time"
        )


def warn_of_stream(loader: Any, stage: str, processes: int) -> None:
    """Say that several processes read the same images, which Lightning can't share among them.

    Args:
        loader: The stage's.
        stage: Names the hook, such as ``"test"``.
        processes: Number of them.
    """
    if processes > 1 and isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        rank_zero_warn(
            f"{stage}_dataloader reads a stream (IterableDataset), which each of {processes} processes reads as a "
            "whole, unless it shares itself out by torch.distributed.get_rank(): use a set with a length, or "
            "--trainer.devices 1"
        )


class SamplerPadding:
    """Counts a process's images, to leave out those that only make all processes' shares equal.

    torch's DistributedSampler, which Lightning gives to ordinary loaders, deals images out in turn and begins again
    where they don't suffice, so that 33 images on two processes are 34.

    Args:
        loader: Of this process.
    """

    def __init__(self, loader: Any) -> None:
        if isinstance(loader, (Mapping, Sequence)) and len(loader) == 1:
            (loader,) = loader.values() if isinstance(loader, Mapping) else loader
        sampler: Any = getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(
            loader, "sampler", None
        )
        self._left: int | None = None
        if type(sampler) in (DistributedSampler, DistributedSamplerWrapper) and not sampler.drop_last:
            self._left = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))

    def count_unpadded(self, count: int) -> int:
        """Return how many of the next ``count`` images are not repeated; those come first."""
        if self._left is None:
            return count
        kept = min(count, self._left)
        self._left -= kept
        return kept
