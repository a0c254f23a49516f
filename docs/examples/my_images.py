"""Custom data: images in arrays."""

import numpy as np
import torch

from datamodules import ImageSet, InMemoryDataModule


class MyImages(InMemoryDataModule):
    """Read a file of ``numpy.savez`` with ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``.

    Images are ``(N, H, W, C)``, uint8, without normalisation: that is the network's first layer. Labels are ``(N,)``.

    Args:
        file: The file.
        num_classes: Number of classes: labels are from 0 to one less.
        batch_size: Images per batch and process.
        val_size: Number of training images to hold out for validation.
    """

    def __init__(self, file: str, num_classes: int = 10, batch_size: int = 128, val_size: int = 0) -> None:
        super().__init__(batch_size, val_size=val_size, num_classes=num_classes)
        self.file = file

    def read_train(self) -> ImageSet:
        """Read the training images, including those to hold out."""
        return self._read("train")

    def read_test(self) -> ImageSet:
        """Read the test images."""
        return self._read("test")

    def _read(self, part: str) -> ImageSet:
        arrays = np.load(self.file)
        images = torch.from_numpy(arrays[f"{part}_images"]).movedim(-1, 1)  # (N, H, W, C) -> (N, C, H, W)
        return ImageSet(images, torch.from_numpy(arrays[f"{part}_labels"]).to(torch.int64))
