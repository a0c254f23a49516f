"""Batches of images: formats, order and augmentation, with torch alone."""

from rampart.data.augment import Augmentation, Border, draw_flips, draw_offsets, flip_images, scale_images, shift_images
from rampart.data.batch import Batch, read_batch
from rampart.data.order import BatchPlace, EpochOrder
from rampart.data.placement import free_host_memory, free_memory, leaves_room, move_tensor
from rampart.data.tensor_batches import TensorBatches
from rampart.data.worker_batches import WorkerBatches

__all__ = [
    "Augmentation",
    "Batch",
    "BatchPlace",
    "Border",
    "EpochOrder",
    "TensorBatches",
    "WorkerBatches",
    "draw_flips",
    "draw_offsets",
    "flip_images",
    "free_host_memory",
    "free_memory",
    "leaves_room",
    "move_tensor",
    "read_batch",
    "scale_images",
    "shift_images",
]
