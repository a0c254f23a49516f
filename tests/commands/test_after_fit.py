"""The end of fit: its test and the printed next command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cli import main


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class TrainOnly(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8) % 3), 4)


class WithTest(TrainOnly):
    def test_dataloader(self) -> Any:
        return self.train_dataloader()


class TwoTestSets(TrainOnly):
    def test_dataloader(self) -> Any:
        return [self.train_dataloader(), self.train_dataloader()]


def fit(folder: Path, data: type) -> None:
    here = "tests.commands.test_after_fit"
    main([
        "fit", "--model=AdversarialClassifier", f"--model.network={here}.network", "--model.eps=0.1",
        "--model.attack=rampart.attacks.PGD", "--model.attack.steps=1", f"--data={here}.{data.__name__}",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--images.num_images=0", f"--runs_dir={folder}", "--checkpoint.monitor=null",
    ])  # fmt: skip


def test_fit_without_test_images_succeeds(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    fit(tmp_path, TrainOnly)
    assert "No test: TrainOnly has no test_dataloader." in caplog.text + capsys.readouterr().err
    assert list(tmp_path.rglob("last.ckpt"))


def test_the_printed_next_command_has_a_loader_in_the_data_module(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path, WithTest)
    shown = capsys.readouterr().out
    assert "cli.py test --config" in shown
    assert "cli.py predict" not in shown


def test_a_failed_test_after_fit_still_prints_the_checkpoint(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, TwoTestSets)
    shown = capsys.readouterr()
    (best,) = tmp_path.rglob("epoch0*.ckpt")
    assert f"Checkpoint: {best}" in shown.out
    assert "error: test_dataloader must return one loader, got a list of 2" in shown.err
