from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import AdversarialClassifier
from lightning_modules.finite_loss import FiniteLossCheck
from rampart.attacks import PGD
from rampart.files.finite import first_nonfinite

IMAGES = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LOADER: Any = DataLoader(TensorDataset(IMAGES, torch.arange(12) % 3), batch_size=3)


class Poisoned(nn.Module):
    """Returns NaN, or sets a weight to infinity, in forward pass number ``at`` (from 1 on) in train mode."""

    def __init__(self, at: int, weight: bool = False) -> None:
        super().__init__()
        inner: Any = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.inner, self.at, self.weight, self.calls = inner, at, weight, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        logits: Tensor = self.inner(images)
        if self.training and self.calls == self.at:
            if self.weight:
                with torch.no_grad():
                    self.inner[1].bias[1] = torch.inf
            else:
                logits = logits * torch.nan
        return logits


def fit(network: nn.Module, folder: Path, **settings: Any) -> None:
    saving = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=1, filename="{step}")
    trainer = Trainer(
        default_root_dir=folder, callbacks=[saving], logger=False, accelerator="cpu", max_epochs=3,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(AdversarialClassifier(network, eps=0.25, attack=PGD(steps=1)), LOADER)


def refusal(network: nn.Module, folder: Path) -> str:
    with pytest.raises(ValueError, match="training stopped") as caught:
        fit(network, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loss_that_is_nan_stops_training_and_names_the_step(tmp_path: Path) -> None:
    line = refusal(Poisoned(at=7), tmp_path)
    assert "the loss is nan at epoch 1 (zero-based), step 6, eps 0.25; all weights are finite" in line
    assert f"the last checkpoint is {tmp_path / 'last.ckpt'}" in line
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_non_finite_weights_are_named_and_never_saved(tmp_path: Path) -> None:
    line = refusal(Poisoned(at=3, weight=True), tmp_path)
    assert "network.inner.1.bias is NaN or infinite at epoch 0 (zero-based), step 3, and is not saved" in line
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]["network.inner.1.bias"].isfinite().all()


def test_a_diverging_run_ends_with_an_error(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Linear(32, 3))
    module = AdversarialClassifier(
        network, eps=0.1, attack=PGD(steps=1), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e20)
    )
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **dict.fromkeys(quiet, False))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the loss is (nan|inf).*no checkpoint has been saved"):
        trainer.fit(module, LOADER)


class StubTrainer:
    """The attributes of a trainer that the check reads."""

    current_epoch, global_step, log_every_n_steps, checkpoint_callbacks = 0, 0, 4, ()


def test_losses_on_an_accelerator_are_checked_every_few_steps() -> None:
    check, trainer, network = FiniteLossCheck(), StubTrainer(), nn.Linear(2, 2)

    class OnDevice(Tensor):
        device = torch.device("cuda")

    losses = [torch.tensor(value).as_subclass(OnDevice) for value in (1.0, torch.nan, 2.0, 3.0)]
    for step, loss in enumerate(losses[:3]):
        trainer.global_step = step
        check.add(loss, 0.1, trainer, network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loss is nan at epoch 0 .*, step 1, eps 0\.1"):
        check.add(losses[3], 0.1, trainer, network)  # type: ignore[arg-type]
    check.add(losses[1], 0.1, trainer, network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss is nan"):
        check.check_before_saving(trainer, network)  # type: ignore[arg-type]


def test_a_checkpoint_with_nan_is_refused_and_the_tensor_named(tmp_path: Path) -> None:
    fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), tmp_path, limit_train_batches=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    saved["state_dict"]["network.1.weight"][0, 0] = torch.nan
    torch.save(saved, tmp_path / "nan.ckpt")
    module = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), eps=0.1, attack=PGD(steps=1))
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    for command in (trainer.test, trainer.fit):
        with pytest.raises(ValueError, match=r"the checkpoint holds .*not finite.* 1\.weight \("):
            command(module, LOADER, ckpt_path=tmp_path / "nan.ckpt")


def test_an_infinite_buffer_is_allowed() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert first_nonfinite(network) is None
    with torch.no_grad():
        network.weight[0, 0] = torch.inf
    assert first_nonfinite(network) == "weight"
