"""Custom data: image files in one folder per class."""

from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

Batches = DataLoader[tuple[Tensor, Tensor]]


class MyImages(LightningDataModule):
    """Read ``FOLDER/train/CLASS/*.png`` and ``FOLDER/test/CLASS/*.png`` (or .jpg, ...).

    Images come as float in [0, 1], without normalisation: that is the network's first layer.

    Args:
        folder: Holds ``train`` and ``test``.
        image_size: Height and width in pixels that images are resized to.
        batch_size: Images per batch and process.
        val_share: Share of the training images that is held out for validation.
        num_workers: Processes that read files.
    """

    def __init__(
        self, folder: str, image_size: int = 32, batch_size: int = 128, val_share: float = 0.1, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.folder, self.batch_size, self.val_share = Path(folder), batch_size, val_share
        self.num_workers = num_workers
        self.transform = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])

    def setup(self, stage: str) -> None:
        """Find the files that the stage needs; choose the held-out images by a fixed seed."""
        if stage in ("test", "predict"):
            self.test_set = ImageFolder(str(self.folder / "test"), self.transform)
            return
        images = ImageFolder(str(self.folder / "train"), self.transform)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = max(1, int(self.val_share * len(images)))
        self.val_set, self.train_set = Subset(images, order[:held_out]), Subset(images, order[held_out:])

    def train_dataloader(self) -> Batches:
        """Shuffled batches of the training images."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> Batches:
        """Batches of the held-out images."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> Batches:
        """Batches of the test images."""
        return self._loader(self.test_set)

    predict_dataloader = test_dataloader

    def _loader(self, images: Dataset[tuple[Tensor, Tensor]], shuffle: bool = False) -> Batches:
        return DataLoader(images, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers)
