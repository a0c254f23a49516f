from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler, TensorDataset

from commands.loader_connector import LoaderConnector
from commands.resuming import make_resumable
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD

DATA = TensorDataset(torch.rand(7, 1, 4, 4), torch.arange(7) % 3)


class Open(DataLoader[Any]):
    def __init__(self, data: Any, size: int, **settings: Any) -> None:
        super().__init__(data, batch_size=size, **settings)


class Closed(DataLoader[Any]):
    def __init__(self, data: Any, size: int, mixed: bool = False) -> None:
        super().__init__(data, size, mixed)


class Given(LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader()

    test_dataloader = predict_dataloader = train_dataloader


def trainer() -> Trainer:
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    made: Any = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(quiet, False))  # type: ignore[arg-type]
    made._data_connector = LoaderConnector(made)
    return made  # type: ignore[no-any-return]


def classifier() -> Any:
    return AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), eps=0.1, attack=PGD(steps=1))


LOADERS = {
    "size": lambda: DataLoader(DATA, 3),
    "size and order": lambda: DataLoader(DATA, 3, True),
    "by name": lambda: DataLoader(dataset=DATA, batch_size=3, drop_last=True),
    "open": lambda: Open(DATA, 3, num_workers=0),
    "closed": lambda: Closed(DATA, 3),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_predict_reads_loaders_with_positional_arguments(kind: str) -> None:
    predicted: Any = trainer().predict(classifier(), datamodule=Given(LOADERS[kind]))
    assert sum(len(part["label"]) for part in predicted) == 7


@pytest.mark.parametrize("kind", list(LOADERS)[:3])
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_loaders_with_positional_arguments_are_shared_among_processes(
    kind: str, command: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(LoaderConnector, "_requires_distributed_sampler", lambda *_: True)
    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", {"num_replicas": 2, "rank": 1})
    t = trainer()
    getattr(t, command)(classifier(), datamodule=Given(LOADERS[kind]))
    loader: Any = {"fit": t.train_dataloader, "test": t.test_dataloaders, "predict": t.predict_dataloaders}[command]
    assert isinstance(loader.batch_sampler.sampler, DistributedSampler)
    assert len(loader.batch_sampler.sampler) == (3 if command == "predict" else 4)


def test_a_loader_that_cannot_be_recreated_is_refused_in_one_line(monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"Closed can't be recreated .* predict_dataloader needs") as caught:
        trainer().predict(classifier(), datamodule=Given(lambda: Closed(DATA, 3, True)))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(LoaderConnector, "_requires_distributed_sampler", lambda *_: True)
    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", {"num_replicas": 2, "rank": 1})
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ValueError, match="test_dataloader needs here"):
        trainer().test(classifier(), datamodule=Given(LOADERS["closed"]))


class Orders(Callback):
    """Record the images of each epoch in order, and set torch's seed as user code may."""

    def __init__(self, seed: int) -> None:
        self.seed, self.seen = seed, list[list[float]]()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(self.seed)
        self.seen.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen[-1] += batch[0][:, 0, 0, 0].tolist()


def test_the_order_depends_on_the_runs_seed_and_not_on_torchs_global_seed() -> None:
    seen = []
    for seed in (3, 4):
        orders, made = Orders(seed), trainer()
        made.callbacks.append(orders)  # type: ignore[attr-defined]
        made.run_seed, made.fit_loop.max_epochs = 5, 2  # type: ignore[attr-defined]
        make_resumable(made)
        torch.manual_seed(seed)
        made.fit(classifier(), datamodule=Given(lambda: DataLoader(DATA, 3, sampler=SubsetRandomSampler(range(7)))))
        seen.append(orders.seen)
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]
