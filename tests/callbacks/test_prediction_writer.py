import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler, _IndexBatchSamplerWrapper
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, TensorDataset

from callbacks import PredictionWriterCallback
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD

IMAGES = torch.rand(7, 1, 4, 4)
LABELS = torch.arange(7) % 3


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(IMAGES, LABELS, strict=True))


@pytest.mark.parametrize(
    ("loader", "labels"),
    [
        (DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3), True),
        (DataLoader(TensorDataset(IMAGES), batch_size=3), False),
        ([DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)], True),
        (DataLoader(TensorDataset(IMAGES, LABELS, torch.arange(7)), batch_size=3, shuffle=True), True),
        (DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3, shuffle=True), True),
        (DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=BatchSampler([6, 5, 4, 3, 2, 1, 0], 3, False)), True),
        (DataLoader(Stream(), batch_size=3), True),
        ([[IMAGES[:4], LABELS[:4]], [IMAGES[4:], LABELS[4:]]], True),
        ([IMAGES[:4], IMAGES[4:]], False),
    ],
)
def test_each_image_has_its_index(tmp_path: Path, loader: Any, labels: bool) -> None:
    module = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), eps=0.1, attack=PGD(steps=1))
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[PredictionWriterCallback()], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    if isinstance(loader, list) and len(loader) == 2:
        batches: Any = loader
        loader = DataLoader(batches, batch_size=None)
    trainer.predict(module, loader)
    rows = rows_in(tmp_path)
    assert [int(row["index"]) for row in rows] == list(range(7))
    assert [row["label"] for row in rows] == [str(label) if labels else "" for label in LABELS.tolist()]
    assert [int(row["clean_prediction"]) for row in rows] == module(IMAGES).argmax(1).tolist()
    report = json.loads((tmp_path / "predictions.json").read_text())
    assert (report["images"], report["attack"]["name"], report["attack"]["eps"]) == (7, "PGD-20 @ 0.1", 0.1)
    assert (report["precision"], report["tf32"], report["deterministic"]) == ("float32", False, False)
    assert (report["device"], report["world_size"]) == ("cpu", 1)
    assert report["execution"]["memory_format"] == "contiguous"


def two_processes(folder: Path, monkeypatch: Any, loaders: list[Any], places: list[list[list[int]]]) -> None:
    """Write as two processes would: the first gathers the second's rows."""
    gathered: list[Any] = []
    for rank in (1, 0):
        trainer: Any = SimpleNamespace(
            world_size=2, is_global_zero=rank == 0, predict_dataloaders=loaders[rank], logger=None,
            default_root_dir=folder, ckpt_path=None, precision="32-true",
        )  # fmt: skip
        writer: Any = PredictionWriterCallback()
        writer.on_predict_start(trainer, AdversarialClassifier(nn.Flatten(), eps=0.1))
        for number, batch in enumerate(places[rank]):
            classes = torch.tensor(batch)
            writer.on_predict_batch_end(trainer, None, {"clean_prediction": classes}, None, number)

        def gather(parts: list[Any], rows: Any) -> None:
            gathered.append(rows)
            parts[:] = gathered[::-1]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        writer.on_predict_end(trainer, None)


@pytest.mark.parametrize("sampler", [UnrepeatedDistributedSampler, DistributedSampler])
def test_two_processes_write_every_index_once_and_in_order(tmp_path: Path, monkeypatch: Any, sampler: Any) -> None:
    loaders, places = [], []
    for rank in (0, 1):
        dealt = sampler(range(7), 2, rank, shuffle=False)
        batches: Any = _IndexBatchSamplerWrapper(BatchSampler(dealt, 2, drop_last=False))
        places.append([list(map(int, batch)) for batch in batches])
        loaders.append(SimpleNamespace(batch_sampler=batches))
    two_processes(tmp_path, monkeypatch, loaders, places)
    rows = rows_in(tmp_path)
    assert [row["index"] for row in rows] == [row["clean_prediction"] for row in rows] == [str(i) for i in range(7)]


def test_two_processes_without_indices_leave_the_column_empty_and_warn(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.warns(UserWarning, match=r"predictions\.csv has no index.*use --trainer\.devices 1"):
        two_processes(tmp_path, monkeypatch, [object(), object()], [[[1], [2]], [[3]]])
    assert [row["index"] for row in rows_in(tmp_path)] == [""] * 3
