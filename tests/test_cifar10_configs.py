"""Every config of configs/cifar10 trains, on a few synthetic images in CIFAR-10's binary files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cli import main
from rampart.networks import ResNet18, ResNet50
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs/cifar10").glob("*.yaml"))
MADRY_STD = (0.2023, 0.1994, 0.2010)
SIZES = {True: 2060, False: 20}  # fast_16 and fast_32 hold out 2,000
SMALL = [
    "--data.batch_size=4",
    "--data.eval_batch_size=4",
    "--model.network.width=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--curve.num_images=0",
    "--images.num_images=0",
]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.cifar.SIZES", SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's binary files with random images."""
    root = tmp_path_factory.mktemp("data")
    (root / "cifar-10-batches-bin").mkdir()
    generator = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    for name, number in (*((name, SIZES[True] // 5) for name in names), ("test_batch", SIZES[False])):
        records = generator.integers(256, size=(number, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(number) % 10
        records.tofile(root / "cifar-10-batches-bin" / f"{name}.bin")
    return root


def run(folder: Path, runs: Path, config: str, *options: str) -> None:
    where = [f"--data.data_dir={folder}", f"--runs_dir={runs}", "--test_after_fit=false"]
    main(["fit", f"--config={ROOT}/configs/cifar10/{config}.yaml", *where, *SMALL, *options])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(config: Path, folder: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    options = ["--data.train_size=40"] if "train_size" in settings["data"]["init_args"] else []
    if settings.get("ramp", {}).get("init_from"):
        network = ResNet50(width=2, std=MADRY_STD) if "extended" in config.stem else ResNet18(width=2)
        torch.save(network.state_dict(), tmp_path / "start.pth")
        options.append(f"--ramp.init_from={tmp_path / 'start.pth'}")
    run(folder, tmp_path, config.stem, "--trainer.fast_dev_run=1", *options)


def test_extended_training_starts_from_the_weights_of_madry_8(folder: Path, tmp_path: Path, caplog: Any) -> None:
    run(folder, tmp_path, "madry_8", "--trainer.max_epochs=3")
    start = tmp_path / "cifar10_madry_8/fit-0/checkpoints/last.ckpt"
    resnet = ["--model.network=rampart.networks.ResNet18", "--model.network.width=2"]
    with caplog.at_level("INFO"):
        run(folder, tmp_path, "extended_16", "--trainer.fast_dev_run=1", f"--ramp.init_from={start}", *resnet)
    assert f"into ResNet18 from {start}" in caplog.text
