"""Data module for image sets that fit into memory."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor

from rampart.attacks.random import agree_on_run_seed, resume_run_seed, run_seed
from rampart.data import Augmentation, Border, TensorBatches, leaves_room


class ImageSet(NamedTuple):
    """Images ``(N, C, H, W)``, uint8, and labels ``(N,)``, int64."""

    images: Tensor
    labels: Tensor


class InMemoryDataModule(LightningDataModule, ABC):
    """Train, validation and test batches of an image set held in memory as uint8.

    In a run, batches are on the run's device, augmented and scaled there; outside of one, they are on the CPU.

    A subclass reads the images. Validation images are chosen from the training images by ``split_seed`` alone, so that
    all runs of a configuration hold out the same ones. ``predict`` uses the test images, in order.

    Args:
        batch_size: Images per training batch and process.
        eval_batch_size: Images per batch and process in validation, test and prediction.
        val_size: Number of training images to hold out for validation; 0 trains on all and has no validation.
        split_seed: Seed of the random choice of held-out images.
        drop_last: Leave out a smaller last training batch.
        max_shift: Largest random shift of a training image in each direction, in pixels; each epoch has new shifts.
            A random crop with padding 4 is a shift by up to 4.
        num_classes: Number of classes: labels are in [0, num_classes). The class attribute if None, which is 10 unless
            a subclass sets another.
        on_device: Hold the training and validation images in the accelerator's memory during training. None: if they
            take at most a quarter of its free memory. Everything else is moved in batches. No effect on a CPU.
        flip: Mirror each training image left to right with probability 1/2; each epoch has new flips.
        border: Pixels that a shift brings in: black, or copies of the image's edge.
        train_size: Number of training images to train on, all if None: a class-balanced random choice, by
            ``split_seed``, of the images that are not held out. The held-out images do not depend on it, and a smaller
            choice is a part of a larger one.

    Raises:
        ValueError: If a size is out of range.
    """

    num_classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 250,
        val_size: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        max_shift: int = 0,
        num_classes: int | None = None,
        on_device: bool | None = None,
        flip: bool = False,
        border: Border = "black",
        train_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = self.num_classes if num_classes is None else num_classes
        for name, size, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("val_size", val_size, 0),
            ("max_shift", max_shift, 0),
            ("num_classes", self.num_classes, 1),
            ("train_size", 1 if train_size is None else train_size, 1),
        ):
            if size < least:
                raise ValueError(f"data.{name} must be at least {least}, got {size}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.split_seed, self.train_size = val_size, split_seed, train_size
        self.drop_last, self.max_shift, self.on_device = drop_last, max_shift, on_device
        self.flip, self.border = flip, border
        self._sets: dict[str, ImageSet] = {}
        self._on_device: dict[str, ImageSet] = {}

    @abstractmethod
    def read_train(self) -> ImageSet:
        """Read the training images, including those to hold out for validation."""

    @abstractmethod
    def read_test(self) -> ImageSet:
        """Read the test images."""

    def setup(self, stage: str) -> None:
        """Read the images of a stage and hold out the validation images.

        Raises:
            ValueError: If no training image would be left, fewer than ``train_size`` would be, images or labels don't
                have the shape and dtype that :class:`ImageSet` states, or a label is out of range.
        """
        if self.trainer is not None:
            agree_on_run_seed(self.trainer)
        if stage in ("fit", "validate") and "train" not in self._sets:
            images, labels = self._check(self.read_train())
            if self.val_size >= len(images):
                raise ValueError(f"data.val_size must leave images to train on: got {self.val_size} of {len(images)}")
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
            val, train = order[: self.val_size], order[self.val_size :]
            if self.train_size is not None:
                if self.train_size > len(train):
                    raise ValueError(
                        f"data.train_size must be at most {len(train)}, the {len(images)} training images without the "
                        f"{self.val_size} of data.val_size; got {self.train_size}"
                    )
                train = train[_choose_balanced(labels[train], self.train_size)]
            val, train = val.sort().values, train.sort().values  # so that both keep the order of the set
            self._sets["val"] = ImageSet(images[val], labels[val])
            self._sets["train"] = ImageSet(images[train], labels[train])
        if stage in ("test", "predict") and "test" not in self._sets:
            self._sets["test"] = self._check(self.read_test())

    def train_dataloader(self) -> TensorBatches:
        """Return shuffled batches of the training images."""
        augmentation = Augmentation(self.max_shift, self.flip, self.border)
        return self._batches("train", self.batch_size, True, self.drop_last, augmentation)

    def val_dataloader(self) -> TensorBatches | list[TensorBatches]:
        """Return batches of the held-out images; an empty list if none are held out."""
        return self._batches("val", self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> TensorBatches:
        """Return batches of the test images, in order."""
        return self._batches("test", self.eval_batch_size)

    def predict_dataloader(self) -> TensorBatches:
        """Return batches of the test images, in order."""
        return self._batches("test", self.eval_batch_size)

    def teardown(self, stage: str) -> None:  # noqa: ARG002 - Lightning's argument
        """Forget the images in the accelerator's memory."""
        self._on_device.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the run's seed, since LightningModules other than Rampart's do not save it."""
        return {"run_seed": run_seed(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seed of the resumed run."""
        resume_run_seed(self.trainer, state_dict.get("run_seed"))

    def _batches(
        self,
        split: str,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        augmentation: Augmentation | None = None,
    ) -> TensorBatches:
        trainer = self.trainer
        device = torch.device("cpu")
        if trainer is not None and trainer.state.status == TrainerStatus.RUNNING:
            device = trainer.strategy.root_device
        return self._build_batches(
            split,
            device,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            augmentation=augmentation,
            seed=lambda: run_seed(self.trainer),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def _build_batches(self, split: str, device: torch.device, **settings: Any) -> TensorBatches:
        """Return batches on a device; the settings are those of :class:`TensorBatches`."""
        return TensorBatches(*self._place(split, device), device=device, **settings)

    def _place(self, split: str, device: torch.device) -> ImageSet:
        """Return the images of a split: those that training reads in each epoch on the device, if they are to be there.

        Raises:
            ValueError: If ``on_device`` is True and the device's memory is too small.
        """
        image_set = self._sets[split]
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if device.type == "cpu" or not fitting or self.on_device is False:
            return image_set
        if split not in self._on_device:
            if self.on_device is None and not leaves_room(device, *image_set):
                return image_set
            try:
                self._on_device[split] = ImageSet(*(tensor.to(device) for tensor in image_set))
            except RuntimeError as error:
                size = sum(tensor.nbytes for tensor in image_set) / 1e6
                raise ValueError(
                    f"data.on_device is true, but {len(image_set.labels):,} images ({size:,.0f} MB) don't fit into the "
                    f"memory of {device}: set it to false or null"
                ) from error
        return self._on_device[split]

    def _check(self, image_set: ImageSet) -> ImageSet:
        images, labels = image_set
        if images.ndim != 4 or images.dtype != torch.uint8 or images.numel() == 0:
            raise ValueError(
                f"images must be (N, C, H, W), uint8, N above 0; the data has {tuple(images.shape)}, {images.dtype}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be ({len(images)},), int64, one per image; the data has {tuple(labels.shape)}, "
                f"{labels.dtype}"
            )
        low, high = int(image_set.labels.min()), int(image_set.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels must be in [0, {self.num_classes}), the data has {low} to {high}")
        return image_set


def _choose_balanced(labels: Tensor, size: int) -> Tensor:
    """Return the indices of the first images of each class in turn; classes without further images are left out.

    Args:
        labels: ``(N,)``, int64, in random order.
        size: Number of images to choose, at most N.
    """
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    place = torch.empty_like(labels)  # of each image among those of its class
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return place.argsort(stable=True)[:size]
