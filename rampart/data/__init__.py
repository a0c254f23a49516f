"""Batches of images: formats, order and augmentation, with torch alone."""

from rampart.data.augment import draw_offsets, scale_images, shift_images
from rampart.data.batch import Batch, read_batch
from rampart.data.order import EpochOrder
from rampart.data.placement import free_memory, leaves_room, move_tensor
from rampart.data.tensor_batches import TensorBatches

__all__ = [
    "Batch",
    "EpochOrder",
    "TensorBatches",
    "draw_offsets",
    "free_memory",
    "leaves_room",
    "move_tensor",
    "read_batch",
    "scale_images",
    "shift_images",
]
