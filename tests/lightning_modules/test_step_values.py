from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from lightning_modules import AdversarialClassifier, adversarial_classifier
from lightning_modules.step_values import hide_from_bar
from rampart.attacks import PGD
from rampart.objectives import MTLIBP

IMAGES = torch.rand(14, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LOADER: Any = DataLoader(TensorDataset(IMAGES, torch.arange(14) % 3), batch_size=4)


class Observer(Callback):
    """Record what callbacks and the progress bar can read after each step and epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.read(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.read(trainer)

    def read(self, trainer: Trainer) -> None:
        for metrics in (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics):
            self.seen.append({name: float(value) for name, value in metrics.items()})


def observe(folder: Path, **settings: Any) -> tuple[list[dict[str, float]], str]:
    """Train, and return what callbacks saw and what the logger wrote."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    module = AdversarialClassifier(network, eps=0.1, attack=PGD(steps=1), objective=MTLIBP(weight=0.5))
    observer, logger = Observer(), CSVLogger(folder)
    trainer = Trainer(
        default_root_dir=folder, callbacks=[observer, TQDMProgressBar()], logger=logger, accelerator="cpu",
        enable_checkpointing=False, enable_model_summary=False, max_epochs=2, log_every_n_steps=3, **settings,
    )  # fmt: skip
    trainer.fit(module, LOADER)
    return observer.seen, (Path(logger.log_dir) / "metrics.csv").read_text()


def log_one_by_one(
    module: Any, values: Mapping[str, Tensor], shown: Collection[str], averaged: Mapping[str, Metric]
) -> None:
    for name, value in values.items():
        module.log(name, value, prog_bar=name in shown, on_step=True, on_epoch=False)
    for name, metric in averaged.items():
        module.log(name, metric, prog_bar=True, on_step=False, on_epoch=True)


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}])
def test_values_are_those_that_lightning_would_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    observed = observe(tmp_path / "own", **settings)
    monkeypatch.setattr(adversarial_classifier, "log_step", log_one_by_one)
    assert observed == observe(tmp_path / "lightnings", **settings)
    names = {"train/eps", "train/adv_loss", "train/lr", "train/loss", "train/bound_loss", "train/adv_acc"}
    assert names <= set(observed[0][-3])


def test_values_on_an_accelerator_are_read_for_the_bar_only_when_it_is_redrawn() -> None:
    seen = []

    class OneStep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            results = trainer.fit_loop.epoch_loop._results
            entry = results["training_step.train/adv_loss"]
            value, entry.value = entry.value, torch.zeros((), device="meta")
            hide_from_bar(module, ("train/eps", "train/adv_loss"))
            seen.append({name for name in results.metrics(on_step=True)["pbar"] if name.startswith("train/")})
            entry.value = value

    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = Trainer(accelerator="cpu", callbacks=[OneStep()], max_epochs=2, **dict.fromkeys(quiet, False))  # type: ignore[arg-type]
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    trainer.fit(AdversarialClassifier(network, eps=0.1, attack=PGD(steps=1)), LOADER)
    assert seen == [{"train/eps"}] * 8
