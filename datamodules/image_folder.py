"""Anyone's images, in one folder per class."""

from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.class_folders import find_files
from datamodules.image_files import Channels
from datamodules.image_reader import Format, ImageReader, count_cores, find_format
from datamodules.in_memory import ImageSet, InMemoryDataModule
from rampart.attacks.random import agree_on_run_seed
from rampart.data import Border, TensorBatches, WorkerBatches, free_host_memory

MEMORY_SHARE = 0.5  # of the free main memory, divided by the processes on a machine
UNKNOWN_MEMORY = 4 * 2**30  # bytes taken as free where the system does not tell
MAX_WORKERS = 8

PARTS_OF_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class ImageFolderDataModule(InMemoryDataModule):
    """Images in one folder per class.

    ``DATA_DIR/train/CLASS/*.png`` and ``DATA_DIR/test/CLASS/*.png``, with ``DATA_DIR/val/CLASS/*.png`` if there is a
    fixed validation set; or only ``DATA_DIR/CLASS/*.png``. Held-out and test images without a folder are chosen from
    the others by ``split_seed``, the same share of each class. Formats are .png, .jpg, .jpeg, .bmp, .gif, .pgm, .ppm,
    .tif, .tiff and .webp, classes may have subfolders, and links are followed. Classes are numbered in the order of
    their names, sorted by the characters' numbers: ``Z`` before ``a``, ``10`` before ``9``.

    Images are turned upright by their EXIF orientation; of several frames the first is read. Transparent pixels are
    mixed with black; 16-bit values are divided by 256; palettes, CMYK and other colours become RGB.

    Images that fit into memory are read once, at the start. Others are read by worker processes in each epoch, in the
    same batches bit by bit, also in a run that is resumed within an epoch.

    Args:
        data_dir: Folder of the images.
        image_size: Height and width in pixels that images are resized to, once, by Pillow's bilinear filter; one number
            for both. The proportions of an image may change. None if all images have the same size.
        channels: 3 for RGB, 1 for gray, to which the images are converted. None: 1 if all images are stored as gray.
        batch_size: Images per training batch and process.
        eval_batch_size: Images per batch and process in validation, test and prediction.
        val_size: Number of training images to hold out for validation, or their share if it is below 1; 0 for no
            validation. No effect if there is a folder ``val``.
        test_size: Number of images to test on, or their share if it is below 1. No effect if there is a folder
            ``test``.
        split_seed: Seed of the random choice of held-out images and test images, and of those to train on.
        drop_last: Leave out a smaller last training batch.
        max_shift: Largest random shift of a training image in each direction, in pixels; each epoch has new shifts. A
            random crop with padding 4 is a shift by up to 4.
        flip: Mirror each training image left to right with probability 1/2; each epoch has new flips.
        border: Pixels that a shift brings in: black, or copies of the image's edge.
        train_size: Number of training images to train on, all if None: a random choice, the same share of each class,
            of the images that are not held out.
        on_device: Hold the training and validation images in the accelerator's memory during training, if they are in
            main memory. None: if they take at most a quarter of its free memory. No effect on a CPU.
        in_memory: Hold the images in main memory, as uint8. None: if they take at most half of the free memory, divided
            by the processes on the machine.
        num_workers: Processes that read images which are not in memory, for each of training, validation and test; 0
            for none besides the main process. None: one per CPU core of the process, at most 8.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        data_dir: str,
        image_size: int | tuple[int, int] | None = None,
        channels: Channels | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        val_size: int | float = 0.1,
        test_size: int | float = 0.2,
        split_seed: int = 0,
        drop_last: bool = False,
        max_shift: int = 0,
        flip: bool = False,
        border: Border = "black",
        train_size: int | None = None,
        on_device: bool | None = None,
        in_memory: bool | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, 0, split_seed, drop_last, max_shift,
            flip=flip, border=border, train_size=train_size, on_device=on_device,
        )  # fmt: skip
        sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
        if sizes is not None and min(sizes) < 1:
            raise ValueError(f"data.image_size must be at least 1, got {image_size}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, got {num_workers}")
        if channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {channels}")
        self.data_dir, self.image_size, self.channels = Path(data_dir), sizes, channels
        self.held_out = {"test": _check_number("test_size", test_size), "val": _check_number("val_size", val_size)}
        self.in_memory, self.num_workers = in_memory, num_workers
        self.classes: tuple[str, ...] = ()
        self._parts: dict[str, _Part] = {}
        self._format: Format | None = None
        self._with_workers = WeakSet[WorkerBatches]()

    def setup(self, stage: str) -> None:
        """Find the files, once, and read the images of a stage if they are to be in memory.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folders are not as described, no image would be left for a part, images differ in size
                and ``image_size`` is None, or an image that is read here is damaged; in one line.
        """
        if self.trainer is not None:
            agree_on_run_seed(self.trainer)
        if not self._parts:
            self._choose_parts()
        missing = [part for part in PARTS_OF_STAGES[stage] if part in self._parts and part not in self._sets]
        if missing and self._fits(missing):
            for part in missing:
                self._sets[part] = self._check(self._read(part))

    def read_train(self) -> ImageSet:
        """Read the training images, without those that are held out."""
        return self._read("train")

    def read_test(self) -> ImageSet:
        """Read the test images."""
        return self._read("test")

    def val_dataloader(self) -> TensorBatches | list[TensorBatches]:
        """Return batches of the held-out images; an empty list if none are held out."""
        return self._batches("val", self.eval_batch_size) if "val" in self._parts else []

    def teardown(self, stage: str) -> None:
        """End the workers, and forget the images in the accelerator's memory."""
        super().teardown(stage)
        for batches in self._with_workers:
            batches.close()

    def _build_batches(self, split: str, device: torch.device, **settings: Any) -> TensorBatches:
        if split in self._sets:
            return super()._build_batches(split, device, **settings)
        part = self._parts[split]
        workers = min(MAX_WORKERS, count_cores() // self._processes or 1)
        batches = WorkerBatches(
            self._reader(part),
            (self._settled.channels, *self._settled.size),
            part.labels,
            num_workers=workers if self.num_workers is None else self.num_workers,
            device=device,
            **settings,
        )
        self._with_workers.add(batches)
        return batches

    def _choose_parts(self) -> None:
        """Find the files of each part, or choose them from the training images; settle size and channels."""
        found = find_files(self.data_dir)
        parts = {part: _Part(files.paths, torch.tensor(files.labels)) for part, files in found.parts.items()}
        if "train" not in parts:
            raise ValueError(f"{self.data_dir} holds no folder train: it has {', '.join(parts)}")
        pool = parts["train"]
        order = _balance(pool.labels, self.split_seed)
        taken = 0
        for part in ("test", "val"):
            number = _count_images(self.held_out[part], len(pool.paths))
            if part not in parts and number:
                parts[part] = pool.choose(order[taken : taken + number])
                taken += number
            if part == "test" and part not in parts:
                raise ValueError(f"data.test_size must give test images, since {self.data_dir} holds no folder test")
        left = order[taken:] if self.train_size is None else order[taken : taken + self.train_size]
        if len(left) < (self.train_size or 1):
            raise ValueError(
                f"data.val_size, data.test_size and data.train_size ask for more than the {len(pool.paths)} images "
                f"that {self.data_dir} has for training: {taken} are held out, {len(left)} left"
            )
        parts["train"] = pool.choose(left) if len(left) < len(pool.paths) else pool
        self.classes, self.num_classes = found.classes, len(found.classes)
        self._format = find_format(
            [path for part in parts.values() for path in part.paths], self.image_size, self.channels
        )
        self._parts = parts
        counts = ", ".join(f"{len(part.paths):,} {name}" for name, part in sorted(parts.items()))
        height, width = self._format.size
        rank_zero_info(
            f"{self.data_dir}: {self.num_classes} classes; images: {counts}; {height} x {width} pixels, "
            f"{'gray' if self._format.channels == 1 else 'RGB'}"
        )

    @property
    def _settled(self) -> Format:
        assert self._format is not None, "setup has not been called"
        return self._format

    @property
    def _processes(self) -> int:
        """Processes of the run on this machine."""
        return max(1, self.trainer.world_size // self.trainer.num_nodes) if self.trainer is not None else 1

    def _fits(self, parts: list[str]) -> bool:
        """Return True if the images of some parts are to be held in memory."""
        if self.in_memory is not None:
            return self.in_memory
        height, width = self._settled.size
        size = sum(len(self._parts[part].paths) for part in parts) * self._settled.channels * height * width
        free = free_host_memory()
        return size * self._processes <= MEMORY_SHARE * (UNKNOWN_MEMORY if free is None else free)

    def _reader(self, part: "_Part") -> ImageReader:
        return ImageReader(part.paths, self._settled)

    def _read(self, name: str) -> ImageSet:
        part = self._parts[name]
        return ImageSet(self._reader(part).read_all(), part.labels)


class _Part(NamedTuple):
    """Paths of the images of a part, and their labels, ``(N,)``, int64."""

    paths: list[str]
    labels: Tensor

    def choose(self, index: Tensor) -> "_Part":
        """Return the images of some indices, ``(N,)``, int64, in the order of the part."""
        index = index.sort().values
        return _Part([self.paths[each] for each in index.tolist()], self.labels[index])


def _balance(labels: Tensor, seed: int) -> Tensor:
    """Return a random order of images, of whose every section each class has its share.

    Args:
        labels: ``(N,)``, int64.
        seed: Seed of the order.

    Returns:
        Indices ``(N,)``, int64.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    by_class, counts = shuffled.argsort(stable=True), shuffled.bincount()
    place = torch.empty_like(labels)  # of each image among those of its class
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[shuffled[by_class]]
    return order[((place + 0.5) / counts[shuffled]).argsort(stable=True)]


def _check_number(name: str, value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"data.{name} must be a whole number, or a share below 1, and not negative; got {value}")
    return value


def _count_images(size: int | float, of: int) -> int:
    return max(1, round(size * of)) if isinstance(size, float) and size > 0 else int(size)
