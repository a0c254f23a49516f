from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialImagesCallback
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.data import TensorBatches
from tests.conftest import small_network


def fit(folder: Path, callback: AdversarialImagesCallback, network: Any, **settings: Any) -> list[str]:
    images = torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8)
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[callback],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    module = AdversarialClassifier(network, eps=0.1, attack=PGD(steps=1))
    trainer.fit(module, TensorBatches(images, torch.arange(20) % 10, batch_size=10, shuffle=True))
    return sorted(file.name for file in folder.glob("*.png"))


def test_figures_are_drawn_every_n_epochs_and_at_the_end(tmp_path: Path) -> None:
    callback = AdversarialImagesCallback(num_images=2, every_n_epochs=2)
    names = fit(tmp_path, callback, small_network(), max_epochs=3)
    assert names == ["adversarial_images_epoch002.png", "adversarial_images_epoch003.png"]


def test_the_last_figure_is_drawn_if_training_ends_within_an_epoch(tmp_path: Path) -> None:
    assert len(fit(tmp_path, AdversarialImagesCallback(num_images=2), small_network(), max_steps=3)) == 1


def test_drawing_leaves_the_networks_modes_unchanged(tmp_path: Path) -> None:
    network = small_network()
    fit(tmp_path, AdversarialImagesCallback(num_images=2, every_n_epochs=1), network, max_epochs=2)
    assert not network[4].training
    assert network[4].num_batches_tracked == 0
    assert network[1].num_batches_tracked == 4


def test_a_second_run_shows_its_own_images(tmp_path: Path) -> None:
    callback = AdversarialImagesCallback(num_images=2)
    fit(tmp_path, callback, small_network(), max_epochs=1)
    first = callback._examples
    torch.manual_seed(1)  # other images
    assert len(fit(tmp_path, callback, small_network(), max_epochs=1)) == 2
    assert first is not None
    assert callback._examples is not None
    assert not torch.equal(first[0], callback._examples[0])


def test_figures_can_be_turned_off(tmp_path: Path) -> None:
    assert fit(tmp_path, AdversarialImagesCallback(num_images=0), small_network(), max_epochs=1) == []


@pytest.mark.parametrize("settings", [{"num_images": -1}, {"every_n_epochs": 0}])
def test_numbers_out_of_range_raise(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"images\.num_images must be at least 0"):
        AdversarialImagesCallback(**settings)


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 4), (7, 4, 4), (16,), (1, 4, 4, 4)])
def test_images_that_can_not_be_drawn_are_reported_once_and_training_finishes(
    tmp_path: Path, capsys: Any, shape: tuple[int, ...]
) -> None:
    images = torch.rand(20, *shape)
    data: Any = DataLoader(TensorDataset(images, torch.arange(20) % 3), batch_size=10)
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[AdversarialImagesCallback(2, 1)], logger=False, accelerator="cpu",
        max_epochs=2, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 3))
    trainer.fit(AdversarialClassifier(network, eps=0.1, attack=PGD(steps=1)), data, data)
    assert trainer.state.finished
    assert not list(tmp_path.glob("*.png"))
    assert capsys.readouterr().out.count(f"images are not drawn: shape {shape} does not have 1 or 3 channels") == 1


@pytest.mark.parametrize("error", [ImportError("no matplotlib"), RuntimeError("broken\nbackend"), OSError("disk full")])
def test_an_error_in_drawing_is_a_warning(tmp_path: Path, monkeypatch: Any, error: Exception) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("callbacks.adversarial_images.save_figure", broken)
    with pytest.warns(UserWarning, match="adversarial images could not be drawn, the run continues") as caught:
        fit(tmp_path, AdversarialImagesCallback(2), small_network(), max_epochs=1)
    (line,) = [str(warning.message) for warning in caught if "not be drawn" in str(warning.message)]
    assert "\n" not in line
