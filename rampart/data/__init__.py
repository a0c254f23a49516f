"""Batches of images, with torch alone."""

from rampart.data.batch import Batch, read_batch
from rampart.data.tensor_batches import TensorBatches

__all__ = ["Batch", "TensorBatches", "read_batch"]
