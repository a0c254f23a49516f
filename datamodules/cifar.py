"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels (Krizhevsky 2009)."""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, extract_archive

from datamodules.in_memory import ImageSet, InMemoryDataModule
from rampart.data import Border

SIZES = {True: 50_000, False: 10_000}
PIXELS = 3 * 32 * 32
# Files that lie in the folder of a data set itself, by the set.
MARKS = {
    "data_batch_1.bin": "CIFAR-10", "data_batch_1": "CIFAR-10", "train.bin": "CIFAR-100", "train": "CIFAR-100",
    "train-images-idx3-ubyte": "MNIST", "train-images-idx3-ubyte.gz": "MNIST",
}  # fmt: skip


@dataclass(frozen=True)
class _Binary:
    """The official binary version: records of labels, one byte each, and pixels by channel, row and column.

    Args:
        folder: Name of its folder.
        train: Training files, of equal size.
        test: Test files.
        num_labels: Numbers of values of each record's labels; the last one is the class.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_labels: tuple[int, ...]


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10 with its official split: 10 classes, 5,000 training and 1,000 test images of each.

    Two versions are read: the official binary one (``cifar-10-batches-bin``, checked by its files' sizes and labels)
    and torchvision's (``cifar-10-batches-py``, checked by its checksums). The binary one is taken if both are there,
    and torchvision's is downloaded if neither is. Existing files are never changed.

    Args:
        data_dir: Folder that has the folder of the official binary version (such as ``cifar-10-batches-bin``) or of
            torchvision's (such as ``cifar-10-batches-py``), or such a folder itself; torchvision's is downloaded if
            neither is there. If None, the environment variable ``RAMPART_DATA``, or else ``data``.
        batch_size: Images per training batch and process.
        eval_batch_size: Images per batch and process in validation, test and prediction.
        val_size: Number of the 50,000 training images to hold out for validation; 0 trains on all and has no
            validation.
        split_seed: Seed of the random choice of held-out images, and of those to train on.
        drop_last: Leave out a smaller last training batch.
        max_shift: Largest random shift of a training image in each direction, in pixels; each epoch has new shifts. A
            random crop with padding 4 is a shift by up to 4.
        flip: Mirror each training image left to right with probability 1/2; each epoch has new flips.
        border: Pixels that a shift brings in: black, or copies of the image's edge.
        train_size: Number of training images to train on, all if None: a class-balanced random choice, by
            ``split_seed``, of the images that are not held out. The held-out images do not depend on it, and a smaller
            choice is a part of a larger one. Unless the number of classes divides it, some have one image more.
        on_device: Hold the training and validation images in the accelerator's memory during training. None: if they
            take at most a quarter of its free memory. Everything else is moved in batches. No effect on a CPU.

    Raises:
        ValueError: If a size is out of range.
    """

    title: ClassVar[str] = "CIFAR-10"
    torchvision_class: ClassVar[Any] = CIFAR10
    binary: ClassVar[_Binary] = _Binary(
        "cifar-10-batches-bin", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",), (10,)
    )

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        val_size: int = 1000,
        split_seed: int = 0,
        drop_last: bool = False,
        max_shift: int = 0,
        flip: bool = False,
        border: Border = "black",
        train_size: int | None = None,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, val_size, split_seed, drop_last, max_shift,
            flip=flip, border=border, train_size=train_size, on_device=on_device,
        )  # fmt: skip
        self.data_dir = Path(data_dir or os.environ.get("RAMPART_DATA", "data"))

    def prepare_data(self) -> None:
        """Download the images if neither version is there, once per machine.

        Raises:
            FileNotFoundError: If the images are missing and can't be downloaded.
            ValueError: If ``data_dir`` is the folder of another data set.
        """
        if self._find_binary() or self._python_root():
            return
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise FileNotFoundError(f"data_dir {self.data_dir} is a file: {self._remedy}")
        for file, title in MARKS.items():
            if (self.data_dir / file).is_file():
                raise ValueError(
                    f"data_dir {self.data_dir} is a folder of {title}, not of {self.title}: {self._remedy}"
                )
        rank_zero_info(f"Downloading {self.title} to {self.data_dir}")
        try:
            self._download()
        except (RuntimeError, OSError) as error:
            held = sorted(path.name for path in self.data_dir.iterdir())[:6] if self.data_dir.is_dir() else []
            raise FileNotFoundError(
                f"{self.title} is not in data_dir {self.data_dir} (it has {', '.join(held) or 'no files'}) and can't "
                f"be downloaded: {self._remedy}"
            ) from error

    def read_train(self) -> ImageSet:
        """Read the 50,000 training images.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, damaged or of another data set.
        """
        return self._read(train=True)

    def read_test(self) -> ImageSet:
        """Read the 10,000 test images.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, damaged or of another data set.
        """
        return self._read(train=False)

    @property
    def _remedy(self) -> str:
        folders = f"{self.binary.folder} (the binary version) or {self.torchvision_class.base_folder} (torchvision's)"
        return f"set data.data_dir (or RAMPART_DATA) to a folder that has {folders}"

    def _find_binary(self) -> Path | None:
        """Return the folder of the binary version, if it is there."""
        if any((self.data_dir / file).is_file() for file in (*self.binary.train, *self.binary.test)):
            return self.data_dir
        folder = self.data_dir / self.binary.folder
        return folder if folder.is_dir() else None

    def _python_root(self) -> Path | None:
        """Return the folder that has the folder of torchvision's version, if it is there."""
        name = self.torchvision_class.base_folder
        if self.data_dir.resolve().name == name and self.data_dir.is_dir():
            return self.data_dir.resolve().parent
        return self.data_dir if (self.data_dir / name).is_dir() else None

    def _download(self) -> None:
        # Into a temporary folder beside the final one, which so exists as a whole or not at all.
        source = self.torchvision_class
        self.data_dir.mkdir(parents=True, exist_ok=True)
        archive, final = self.data_dir / source.filename, self.data_dir / source.base_folder
        with tempfile.TemporaryDirectory(dir=self.data_dir, prefix=".download-") as folder:
            if check_integrity(str(archive), source.tgz_md5):
                extract_archive(str(archive), folder)
            else:
                with contextlib.redirect_stdout(None):
                    source(folder, download=True)
            try:
                (Path(folder) / source.base_folder).rename(final)
            except OSError:  # Another machine was faster.
                if not final.is_dir():
                    raise

    def _read(self, train: bool) -> ImageSet:
        folder = self._find_binary()
        if folder is not None:
            files = self.binary.train if train else self.binary.test
            records = torch.cat([self._read_records(folder / file, SIZES[train] // len(files)) for file in files])
            skip = len(self.binary.num_labels)
            return ImageSet(records[:, skip:].reshape(-1, 3, 32, 32), records[:, skip - 1].to(torch.int64))
        root = self._python_root()
        if root is None:
            raise FileNotFoundError(f"{self.title} is not in data_dir {self.data_dir}: {self._remedy}")
        try:
            data = self.torchvision_class(str(root), train=train)
        except Exception as error:
            raise ValueError(self._describe_damage(root / self.torchvision_class.base_folder)) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
        return ImageSet(images, torch.tensor(data.targets, dtype=torch.int64))

    def _read_records(self, path: Path, number: int) -> Tensor:
        """Return the records of a binary file: ``(number, labels + 3072)``, uint8."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {self._remedy}")
        sizes = self.binary.num_labels
        length, expected = path.stat().st_size, number * (len(sizes) + PIXELS)
        if length != expected:
            raise ValueError(
                f"{path} has {length:,} bytes, not the {expected:,} of {self.title}: it is truncated or of another "
                "data set; replace it by an intact copy"
            )
        records = torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(number, -1)
        largest = records[:, : len(sizes)].amax(0).tolist()
        if any(label >= size for label, size in zip(largest, sizes, strict=True)):
            raise ValueError(
                f"{path} has labels up to {largest[-1]}, but {self.title} has {sizes[-1]} classes: it is damaged or of "
                "another data set; replace it by an intact copy"
            )
        return records

    def _describe_damage(self, folder: Path) -> str:
        source = self.torchvision_class
        sums = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
        bad = [file for file, md5 in sums if not check_integrity(str(folder / file), md5)]
        return (
            f"{folder} differs from the published files (missing or with another checksum: {', '.join(bad)}): "
            f"delete it to download it again, or {self._remedy}"
        )


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 with its official split and fine labels: 100 classes, 500 training and 100 test images of each.

    Its versions are ``cifar-100-binary`` and torchvision's ``cifar-100-python``; all else, the arguments too, is as for
    :class:`CIFAR10DataModule`.
    """

    num_classes = 100
    title, torchvision_class = "CIFAR-100", CIFAR100
    binary = _Binary("cifar-100-binary", ("train.bin",), ("test.bin",), (20, 100))
