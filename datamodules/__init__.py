"""LightningDataModules of image sets, with float images in [0, 1] and no normalisation."""

from datamodules.digits import DigitsDataModule
from datamodules.in_memory import ImageSet, InMemoryDataModule
from datamodules.mnist import MNISTDataModule
from rampart.data import TensorBatches

__all__ = ["DigitsDataModule", "ImageSet", "InMemoryDataModule", "MNISTDataModule", "TensorBatches"]
