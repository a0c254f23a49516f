"""LightningDataModules of image sets, with float images in [0, 1] and no normalisation."""

from datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from datamodules.digits import DigitsDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.in_memory import ImageSet, InMemoryDataModule
from datamodules.mnist import MNISTDataModule
from rampart.data import TensorBatches

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "ImageSet",
    "InMemoryDataModule",
    "MNISTDataModule",
    "TensorBatches",
]
