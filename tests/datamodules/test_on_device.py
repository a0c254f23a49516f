"""Batches of data modules in a run: made on the run's device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from torch import Tensor

from datamodules import DigitsDataModule
from tests.datamodules.test_datamodules import IMAGES, LABELS, Custom


def running(on_device: bool | None, fn: TrainerFn = TrainerFn.FITTING, **settings: Any) -> Custom:
    """Return a data module in a run on the meta device."""
    data = Custom(IMAGES, LABELS, num_classes=21, on_device=on_device, val_size=2, **settings)
    for stage in ("fit", "test"):
        data.setup(stage)
    state = TrainerState(TrainerStatus.RUNNING, fn, RunningStage.TRAINING)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    trainer: Any = SimpleNamespace(state=state, strategy=strategy, global_rank=0, world_size=1)
    data.trainer = trainer
    return data


def places(data: Custom) -> list[str]:
    """Return the devices that hold the training, held-out and test images, and check those of the batches."""
    loaders: list[Any] = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert {part.device.type for loader in loaders for batch in loader for part in batch} == {"meta"}
    return [loader.images.device.type for loader in loaders]


@pytest.mark.parametrize(("on_device", "room", "held_on"), [
    (None, True, "meta"), (None, False, "cpu"), (True, False, "meta"), (False, True, "cpu"),
])  # fmt: skip
def test_images_are_held_on_the_device_in_training_if_they_fit(
    monkeypatch: pytest.MonkeyPatch, on_device: bool | None, room: bool, held_on: str
) -> None:
    asked: list[int] = []

    def leaves_room(_device: torch.device, *tensors: Tensor) -> bool:
        asked.append(len(tensors[1]))
        return room

    monkeypatch.setattr("datamodules.in_memory.leaves_room", leaves_room)
    data = running(on_device, max_shift=1, flip=True, border="edge")
    held: Any = data.trainer
    assert places(data)[:2] == [held_on, held_on]
    assert asked == ([4, 2, 6] if on_device is None else [])
    assert data.train_dataloader().images is data.train_dataloader().images
    data.teardown("fit")
    held.state.status = TrainerStatus.FINISHED
    assert {part.device.type for batch in data.train_dataloader() for part in batch} == {"cpu"}


@pytest.mark.parametrize("fn", [TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING])
def test_images_that_are_read_once_are_moved_in_batches(fn: TrainerFn) -> None:
    assert places(running(True, fn)) == ["cpu"] * 3


def test_a_set_that_does_not_fit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = running(True)

    def fail(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Tensor, "to", fail)
    with pytest.raises(ValueError, match=r"data\.on_device is true, but 4 images \(0 MB\) don't fit .* meta: set"):
        data.train_dataloader()


class Hooked(LightningModule):
    """A custom module with a hook of its own, which records the images that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), list[Tensor]()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.seen.append(batch[0])
        return batch

    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.weight * batch[0].mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_hooked(accelerator: str, **settings: Any) -> tuple[Hooked, DigitsDataModule]:
    module, data = Hooked(), DigitsDataModule(batch_size=100, val_size=0, max_shift=1, **settings)
    trainer = Trainer(
        accelerator=accelerator, devices=1, max_epochs=1, limit_train_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.run_seed = 7  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data)
    return module, data


def test_the_transfer_hook_of_a_custom_module_gets_the_augmented_images() -> None:
    module, data = fit_hooked("cpu")
    expected = [images for images, _, _ in data.train_dataloader()]
    assert len(module.seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(module.seen, expected, strict=False))


@pytest.mark.gpu
@pytest.mark.parametrize("on_device", [None, False])
def test_a_gpu_gets_the_same_images(on_device: bool | None) -> None:
    on_cpu, _ = fit_hooked("cpu")
    on_gpu, data = fit_hooked("gpu", on_device=on_device)
    loader: Any = data.trainer and data.trainer.train_dataloader
    assert loader.images.device.type == ("cpu" if on_device is False else "cuda")
    assert {images.device.type for images in on_gpu.seen} == {"cuda"}
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu.seen, on_gpu.seen, strict=True))
