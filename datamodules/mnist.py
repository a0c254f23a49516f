"""MNIST: 60,000 training and 10,000 test images of handwritten digits (LeCun et al. 1998)."""

import contextlib
import os
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info
from torchvision.datasets import MNIST

from datamodules.in_memory import ImageSet, InMemoryDataModule

SIZES = {True: 60_000, False: 10_000}


class MNISTDataModule(InMemoryDataModule):
    """MNIST with its official split, read through torchvision.

    Args:
        data_dir: Root folder in torchvision's layout, with the files in ``MNIST/raw``; missing files are downloaded. If
            None, the environment variable ``RAMPART_DATA``, or else ``data``.
        batch_size: Images per training batch and process.
        eval_batch_size: Images per batch and process in validation, test and prediction.
        val_size: Number of training images to hold out for validation; 0 trains on all and has no validation.
        split_seed: Seed of the random choice of held-out images.
        drop_last: Leave out a smaller last training batch.
        max_shift: Largest random shift of a training image in each direction, in pixels; each epoch has new shifts.
        on_device: Hold the training and validation images in the accelerator's memory during training. None: if they
            take at most a quarter of its free memory. Everything else is moved in batches. No effect on a CPU.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        val_size: int = 1000,
        split_seed: int = 0,
        drop_last: bool = False,
        max_shift: int = 0,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, split_seed, drop_last, max_shift, on_device=on_device)
        self.data_dir = Path(data_dir or os.environ.get("RAMPART_DATA", "data"))

    def prepare_data(self) -> None:
        """Download missing files, once per machine.

        Raises:
            FileNotFoundError: If files are missing and can't be downloaded.
        """
        raw = self.data_dir / "MNIST" / "raw"
        files = [Path(archive).with_suffix("") for archive, _ in MNIST.resources]
        missing = [file for file in files if not (raw / file).is_file()]
        if not missing:
            return
        rank_zero_info(f"Downloading MNIST to {self.data_dir}")
        try:
            with contextlib.redirect_stdout(None):
                for train in SIZES:
                    MNIST(str(self.data_dir), train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"MNIST is not in data_dir {self.data_dir} (missing in MNIST/raw: {', '.join(map(str, missing))}) and "
                "can't be downloaded: set data.data_dir (or RAMPART_DATA) to a folder that has MNIST/raw, or use "
                "the bundled digits (data: datamodules.DigitsDataModule)"
            ) from error

    def read_train(self) -> ImageSet:
        """Read the 60,000 training images.

        Raises:
            ValueError: If a file is truncated or damaged.
        """
        return self._read(train=True)

    def read_test(self) -> ImageSet:
        """Read the 10,000 test images.

        Raises:
            ValueError: If a file is truncated or damaged.
        """
        return self._read(train=False)

    def _read(self, train: bool) -> ImageSet:
        files = "train-*-ubyte" if train else "t10k-*-ubyte"
        problem = (
            f"{self.data_dir}/MNIST/raw/{files} are damaged or truncated: delete them to download them again, or "
            "set data.data_dir to an intact copy"
        )
        try:
            mnist = MNIST(str(self.data_dir), train=train)
        except Exception as error:
            raise ValueError(problem) from error
        if mnist.data.shape != (SIZES[train], 28, 28) or mnist.targets.shape != (SIZES[train],):
            raise ValueError(problem)
        return ImageSet(mnist.data[:, None], mnist.targets)  # (N, 28, 28) -> (N, 1, 28, 28)
