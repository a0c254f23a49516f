"""Checks of data loaders, and the images that a distributed sampler repeats."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from rampart.data import EpochOrder


def check_one_loader(loaders: Any, stage: str, unpacked: bool = True) -> None:
    """Refuse several loaders, whose images would be counted as one set.

    Args:
        loaders: Return value of a data module's hook: a loader, or a list or dictionary of loaders.
        stage: Prefix of the hook's name, such as ``"test"``.
        unpacked: True if Lightning unpacks a collection of one loader, as it does except in training.

    Raises:
        ValueError: If there is more than one loader, or a collection of one that is not unpacked.
    """
    if isinstance(loaders, (Mapping, Sequence)) and (len(loaders) > 1 or not unpacked):
        raise ValueError(
            f"{stage}_dataloader must return one loader, got a {type(loaders).__name__} of {len(loaders)}: join the "
            "sets (torch.utils.data.ConcatDataset), or return a single loader"
        )


def warn_about_stream(loader: Any, stage: str, processes: int) -> None:
    """Warn if several processes read the same stream, which Lightning can't split between them.

    Args:
        loader: Loader of the stage.
        stage: Prefix of the hook's name, such as ``"test"``.
        processes: Number of processes in the run.
    """
    if processes > 1 and isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        rank_zero_warn(
            f"{stage}_dataloader reads a stream (IterableDataset), and each of {processes} processes reads all of it "
            "unless the stream splits itself by torch.distributed.get_rank(): use a set with a length, or "
            "--trainer.devices 1"
        )


def check_num_classes(trainer: Any, number: int) -> None:
    """Refuse a network with another number of classes than the data, if the data module names its ``classes``.

    Args:
        trainer: Trainer of the run.
        number: Number of the network's logits.

    Raises:
        ValueError: If the numbers differ.
    """
    classes: Any = getattr(getattr(trainer, "datamodule", None), "classes", None)
    if isinstance(classes, Sequence) and len(classes) not in (0, number):
        named = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
        raise ValueError(
            f"the network has {number} classes, the data {len(classes)} ({named}): set the network's num_classes to "
            f"{len(classes)} (--model.network.num_classes {len(classes)})"
        )


def find_order(loaders: Any) -> EpochOrder | None:
    """Return the order of a loader of :mod:`rampart.data`, or of a collection of one; None for other loaders."""
    order = getattr(_unpack(loaders), "sampler", None)
    return order if isinstance(order, EpochOrder) else None


def _unpack(loaders: Any) -> Any:
    """Return the loader of a collection of one; anything else unchanged."""
    if isinstance(loaders, (Mapping, Sequence)) and len(loaders) == 1:
        (loaders,) = loaders.values() if isinstance(loaders, Mapping) else loaders
    return loaders


class SamplerPadding:
    """Recognise the images that a distributed sampler repeats, so that each image is counted once.

    torch's DistributedSampler, which Lightning adds to ordinary loaders, gives all processes the same number of images:
    it repeats the first ones, so that 33 images on two processes become 34.

    Args:
        loader: Loader of this process, or a collection of one; loaders with another sampler repeat no images.
    """

    def __init__(self, loader: Any) -> None:
        loader = _unpack(loader)
        sampler: Any = getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(
            loader, "sampler", None
        )
        self._left: int | None = None
        if type(sampler) in (DistributedSampler, DistributedSamplerWrapper) and not sampler.drop_last:
            self._left = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))

    def count_unpadded(self, count: int) -> int:
        """Return the number of original images among the next ``count``; repeated images come last."""
        if self._left is None:
            return count
        kept = min(count, self._left)
        self._left -= kept
        return kept
