"""The batches of Lightning's test, passed to a function in place of the test step."""

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.seed import isolate_rng

from rampart.data import read_batch
from rampart.evaluation import Source
from rampart.evaluation.image_source import Visitor

Result = TypeVar("Result")


def run_on_test_batches(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    body: Callable[[Source], Result],
    lock: Path,
    seed: int,
) -> Result:
    """Run Lightning's test, with all hooks of the data module and the model, and pass its batches to a function.

    Every process gets all batches, also if several processes run. Each pass starts with the same random state.

    Args:
        trainer: Trainer whose device and ``limit_test_batches`` are used.
        model: Lightning module, on the device and in eval mode while the function runs.
        datamodule: Data module with the test images; None if the model has a ``test_dataloader``.
        body: Function called once, with a source of batches that it may read any number of times.
        lock: Lock file; one process at a time prepares the data.
        seed: Seed of the random state.

    Returns:
        The function's result.
    """
    strategy = _VisitorStrategy(trainer.strategy.root_device, FileLock(lock))
    with _silent("pytorch_lightning.utilities.rank_zero"):
        inner = _TestBatches(
            accelerator=trainer.accelerator,
            strategy=strategy,
            plugins=[LightningEnvironment()],
            limit_test_batches=trainer.limit_test_batches,
            default_root_dir=trainer.default_root_dir,
            inference_mode=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    results: list[Result] = []
    inner.body, inner.run_seed = lambda source: results.append(body(source)), seed
    try:
        with warnings.catch_warnings():
            # Lightning warns of hooks that a test doesn't use; the same hooks are used here as in a test.
            warnings.filterwarnings("ignore", message="You have overridden")
            inner.test(model, datamodule=datamodule, verbose=False)
    finally:
        strategy.lock.release(force=True)
        for part in (model, datamodule):
            if part is not None:
                part.trainer = trainer
    return results[0]


class _VisitorStrategy(SingleDeviceStrategy):
    """Pass batches to a visitor in place of the test step."""

    def __init__(self, device: torch.device, lock: FileLock) -> None:
        super().__init__(device)
        self.lock = lock
        self.visit: Visitor | None = None

    def setup_environment(self) -> None:
        super().setup_environment()
        self.lock.acquire()

    def barrier(self, *_args: Any, **_kwargs: Any) -> None:
        # Lightning's first barrier comes after the data are prepared, before they are set up.
        self.lock.release()

    def test_step(self, batch: Any, batch_idx: int, *_: Any) -> None:
        try:
            images, labels, _index = getattr(self.lightning_module, "read_batch", read_batch)(batch)
        except ValueError as error:
            raise ValueError(f"{error} (batch {batch_idx + 1} of the test loader)") from error
        assert self.visit is not None
        assert labels is not None
        with isolate_rng():  # The visitor's random numbers must not change the next batches.
            self.visit(images, labels)


class _TestBatches(Trainer):
    """Call a function in place of the test loop; the function may run the loop any number of times."""

    body: Callable[[Source], None]
    run_seed: int

    def _run_stage(self) -> None:
        # Lightning's own handler of SIGTERM waits for the end of the batch, which may take an hour.
        self._signal_connector.teardown()
        self.body(self._run_pass)

    def _run_pass(self, visit: Visitor) -> None:
        strategy = self.strategy
        assert isinstance(strategy, _VisitorStrategy)
        strategy.visit = visit
        with isolate_rng():
            torch.manual_seed(self.run_seed)
            np.random.seed(self.run_seed % 2**32)  # noqa: NPY002 - the generator that custom transforms use
            random.seed(self.run_seed)
            self.test_loop.run()


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)
