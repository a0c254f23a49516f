"""LightningDataModules: float images in [0, 1] and labels, without normalisation."""

from datamodules.digits import DigitsDataModule
from datamodules.mnist import MNISTDataModule

__all__ = ["DigitsDataModule", "MNISTDataModule"]
