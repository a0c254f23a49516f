"""MNIST images and trained networks for several benchmarks."""

from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor, nn

from datamodules import MNISTDataModule
from rampart.files import load_weights

Split = Literal["val", "test"]
Network = TypeVar("Network", bound=nn.Module)


def load_first_images(data_dir: str, split: Split, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of a split and their labels.

    Args:
        data_dir: Folder that holds ``MNIST/raw``.
        split: ``val`` is the 1,000 training images that ``val_size: 1000`` holds out.
        count: Number of images; all if there are fewer.

    Returns:
        Images ``(N, 1, 28, 28)``, float32, in [0, 1]; labels ``(N,)``, int64.
    """
    data = MNISTDataModule(data_dir, val_size=1000)
    data.prepare_data()
    data.setup("fit" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    assert not isinstance(loader, list)
    return loader.images[:count].float() / 255, loader.labels[:count]


def load_trained(network: Network, file: Path | str) -> Network:
    """Load weights into a network and return it in eval mode."""
    load_weights(network, file)
    return network.eval()
