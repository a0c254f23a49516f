"""Batches of images: formats, order and augmentation, with torch alone."""

from rampart.data.augment import draw_offsets, shift_images
from rampart.data.batch import Batch, read_batch
from rampart.data.order import EpochOrder
from rampart.data.tensor_batches import TensorBatches

__all__ = ["Batch", "EpochOrder", "TensorBatches", "draw_offsets", "read_batch", "shift_images"]
