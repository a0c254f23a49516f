"""Batches of an evaluation, compared with those of Lightning's own test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from commands.custom_network import add_network_hooks
from commands.lightning_batches import run_on_test_batches
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.evaluation import Source, WorstCaseSearch

IMAGES = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3


class Plain(LightningDataModule):
    """Batches of three; records the calls of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[str] = []

    def prepare_data(self) -> None:
        self.hooks.append("prepare_data")

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.hooks.append("setup")

    def teardown(self, stage: str) -> None:
        assert self.trainer is not None
        self.hooks.append("teardown")

    def test_dataloader(self) -> Any:
        return DataLoader(self.dataset(), batch_size=3)

    def dataset(self) -> Dataset[Any]:
        return TensorDataset(IMAGES, LABELS)


class Inverted(Plain):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 1 - batch[0], batch[1]


class Dimmed(Plain):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] / 2, batch[1]


class Transposed(Plain):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch[0].transpose(2, 3).to(device), batch[1].to(device)


class ByTrainer(Plain):
    """Reads attributes of its trainer that only a running test has."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        assert self.trainer.testing
        return batch[0] / (1 + self.trainer.world_size), batch[1]


class Unsigned(Plain):
    def dataset(self) -> Dataset[Any]:
        return TensorDataset((IMAGES * 255).byte(), LABELS)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].float() / 255, batch[1]


class Dicts(Plain):
    def dataset(self) -> Any:
        return [{"image": image, "label": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]


class Endless(Plain):
    """Has a loader without a length."""

    def test_dataloader(self) -> Any:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return iter(zip(IMAGES, LABELS, strict=True))

        return DataLoader(Stream(), batch_size=3)


class Shuffled(Plain):
    """Shuffles by torch's global random numbers."""

    def test_dataloader(self) -> Any:
        return DataLoader(self.dataset(), batch_size=3, shuffle=True)


class Listed(Plain):
    """Has one loader in a list."""

    def test_dataloader(self) -> Any:
        return [DataLoader(self.dataset(), batch_size=3)]


class Classifier(AdversarialClassifier):
    """Records the batches of its test step, and has a hook that changes batches."""

    dims = 1.0

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), eps=0.1, attack=PGD(steps=1), test_attacks=())
        self.seen: list[Tensor] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if isinstance(batch, dict) else (batch[0] * self.dims, batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.seen.append(batch["image"] if isinstance(batch, dict) else batch[0])
        return super().test_step(batch, batch_idx, dataloader_idx)


def outer(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, inference_mode=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def shown(data: LightningDataModule | None, lock: Path, model: Any = None, passes: int = 1, **settings: Any) -> Any:
    """Return the images and labels of each pass."""
    batches: list[list[tuple[Tensor, Tensor]]] = []

    def look(source: Source) -> None:
        for _ in range(passes):
            batches.append([])
            source(lambda images, labels: batches[-1].append((images, labels)))
            torch.rand(3)  # random numbers used between passes must not change them

    run_on_test_batches(outer(**settings), model or Classifier(), data, look, lock / "lock", seed=7)
    return [tuple(torch.cat(part) for part in zip(*each, strict=True)) for each in batches]


@pytest.mark.parametrize("kind", [Plain, Inverted, Dimmed, Transposed, ByTrainer, Unsigned, Dicts, Endless, Listed])
def test_evaluation_gets_the_batches_of_a_test(tmp_path: Path, kind: type[Plain]) -> None:
    model = Classifier()
    outer().test(model, datamodule=kind(), verbose=False)
    ((images, labels),) = shown(kind(), tmp_path)
    assert torch.equal(images, torch.cat(model.seen))
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_any_float_type_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    class Typed(Plain):
        def dataset(self) -> Dataset[Any]:
            return TensorDataset(IMAGES.to(dtype), LABELS)

    ((images, _),) = shown(Typed(), tmp_path)
    assert images.dtype == torch.float32
    assert torch.equal(images, IMAGES.to(dtype).float())


def test_an_unreadable_batch_is_named(tmp_path: Path) -> None:
    class Spoilt(Plain):
        def dataset(self) -> Dataset[Any]:
            images = IMAGES.clone()
            images[7, 0, 0, 0] = torch.nan
            return TensorDataset(images, LABELS)

    with pytest.raises(ValueError, match=r"without NaN.*\(batch 3 of the test loader\)"):
        shown(Spoilt(), tmp_path)


def test_hooks_of_the_model_are_used_if_the_data_module_has_none(tmp_path: Path) -> None:
    model = Classifier()
    model.dims = 0.5
    ((images, _),) = shown(Plain(), tmp_path, model)
    assert torch.equal(images, IMAGES / 2)


def test_all_passes_are_equal_after_one_setup_even_if_the_loader_shuffles(tmp_path: Path) -> None:
    data = Shuffled()
    first, second, third = shown(data, tmp_path, passes=3)
    assert data.hooks == ["prepare_data", "setup", "teardown"]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], third[0])
    assert not torch.equal(first[1], LABELS)
    assert torch.equal(first[0], shown(Shuffled(), tmp_path)[0][0])


def test_limit_test_batches_of_the_trainer_is_used(tmp_path: Path) -> None:
    ((images, _),) = shown(Plain(), tmp_path, limit_test_batches=2)
    assert torch.equal(images, IMAGES[:6])


def test_stop_iteration_ends_the_pass(tmp_path: Path) -> None:
    seen = []

    def visit(images: Tensor, labels: Tensor) -> None:
        seen.append(len(labels))
        if len(seen) == 2:
            raise StopIteration

    run_on_test_batches(outer(), Classifier(), Plain(), lambda source: source(visit), tmp_path / "lock", 0)
    assert seen == [3, 3]


def test_trainer_and_random_state_are_restored(tmp_path: Path) -> None:
    trainer, model, data = outer(), Classifier(), Plain()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    run_on_test_batches(trainer, model, data, lambda source: source(lambda *_: None), tmp_path / "lock", 0)
    assert model.trainer is trainer
    assert data.trainer is trainer
    assert torch.equal(torch.rand(1), expected)


class Random(Plain):
    """Has a different order in each pass, also with the same seed."""

    def test_dataloader(self) -> Any:
        generator = torch.Generator()
        generator.seed()
        return DataLoader(self.dataset(), batch_size=3, shuffle=True, generator=generator)


class Once(Plain):
    """Has a loader that can be read only once."""

    def __init__(self) -> None:
        super().__init__()
        self.left = iter([(IMAGES[:3], LABELS[:3]), (IMAGES[3:6], LABELS[3:6])])

    def test_dataloader(self) -> Any:
        return self.left


@pytest.mark.parametrize("kind", [Random, Once])
def test_data_that_change_between_passes_are_refused(tmp_path: Path, kind: type[Plain]) -> None:
    model = Classifier()

    def search(source: Source) -> None:
        WorstCaseSearch(model.network.eval(), source, [PGD(steps=1)], [0.1], batch_size=4).run()

    with pytest.raises(ValueError, match="the test data change from one pass to the next"):
        run_on_test_batches(outer(), model, kind(), search, tmp_path / "lock", 0)


def test_hooks_of_a_network_that_is_a_lightning_module_change_the_batches(tmp_path: Path) -> None:
    network = Classifier()
    network.dims = 0.25
    ((images, _),) = shown(Plain(), tmp_path, add_network_hooks(AdversarialClassifier(network, eps=0.1)))
    assert torch.equal(images, IMAGES / 4)
    custom = Classifier()
    custom.network = network
    assert add_network_hooks(custom) is custom
