import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import RobustnessCurveCallback
from lightning_modules import AdversarialClassifier
from lightning_modules.loaders import SamplerPadding
from rampart.attacks import PGD

IMAGES = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 3


def curve(folder: Path, loader: Any, module: Any = None) -> list[tuple[float, float, int]]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    module = module or AdversarialClassifier(network, eps=0.1, test_attacks=(), attack=PGD(steps=1))
    trainer = Trainer(
        default_root_dir=folder, callbacks=[RobustnessCurveCallback(attack=PGD(steps=1), eps_grid=[0, 0.05])],
        logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, loader)
    with (folder / "robustness_curve.csv").open() as file:
        return [(float(row["eps"]), float(row["accuracy"]), int(row["images"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize("error", [ImportError("no matplotlib"), OSError("disk full")])
def test_the_csv_file_is_written_if_the_figure_fails(tmp_path: Path, monkeypatch: Any, error: Exception) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("callbacks.robustness_curve.robustness_figure", broken)
    with pytest.warns(UserWarning, match="the robustness curve could not be drawn, the run continues"):
        rows = curve(tmp_path, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4))
    assert [(eps, images) for eps, _, images in rows] == [(0, 9), (0.05, 9)]


def test_the_curve_reads_all_supported_batches(tmp_path: Path) -> None:
    results = []
    for number, data in enumerate((TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES.double(), LABELS[:, None]))):
        torch.manual_seed(0)
        results.append(curve(tmp_path / str(number), DataLoader(data, batch_size=4)))
    assert results[0] == results[1]


def test_images_that_a_sampler_repeats_are_counted_once(tmp_path: Path, monkeypatch: Any) -> None:
    def seven_images(padding: Any, _loader: Any) -> None:
        padding._left = 7

    monkeypatch.setattr(SamplerPadding, "__init__", seven_images)
    assert curve(tmp_path, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4))[0][2] == 7
