"""TensorBoard records: curves without a gap, settings with results, and training time over all parts of a run."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from commands.tensorboard_records import copy_curves
from tests.commands.test_trainer_settings import run

EVERY = ["--trainer.log_every_n_steps=1", "--images.num_images=2", "--images.every_n_epochs=1"]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[Path, bytes]]:
    """Return a run of two epochs, and a run of one more epoch that resumes it."""
    folder = tmp_path_factory.mktemp("runs")
    first = run(folder, "fit", *EVERY, "--trainer.max_epochs=2")
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    last = first / "checkpoints" / "last.ckpt"
    time.sleep(1)  # TensorBoard reads files by their names, in which runs of the same second have no order.
    second = run(folder, "fit", *EVERY, "--trainer.max_epochs=3", f"--ckpt_path={last}")
    return first, second, before


def test_a_resumed_run_continues_the_curves_and_keeps_the_old_files(runs: Any) -> None:
    first, second, before = runs
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before
    loss = scalars(second, "train/adv_loss")
    assert [step for step, _ in loss] == list(range(9))
    assert loss[:6] == scalars(first, "train/adv_loss")
    assert [step for step, _ in scalars(second, "val/robust_acc")] == [2, 5, 8]
    board = EventAccumulator(str(second), size_guidance={"images": 0}).Reload()
    assert [image.step for image in board.Images("adversarial_images")] == [3, 6, 9]


def test_curves_are_found_from_a_checkpoint_anywhere_in_the_runs_folder(runs: Any, tmp_path: Path) -> None:
    first = shutil.copytree(runs[0], tmp_path / "first")
    # The places of SLURM's checkpoints, and of a filename with a folder in it.
    for place in ("hpc_ckpt_1.ckpt", "checkpoints/best/epoch.ckpt"):
        (first / place).parent.mkdir(exist_ok=True)
        shutil.copy(first / "checkpoints" / "last.ckpt", first / place)
        copy_curves(str(first / place), tmp_path / place)
        assert [step for step, _ in scalars(tmp_path / place, "train/adv_loss")] == list(range(6))


def test_training_time_includes_the_resumed_run(runs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second, _ = runs
    earlier, whole = (json.loads((folder / "test.json").read_text())["fit_seconds"] for folder in (first, second))
    assert whole > 0.5 * earlier
    tested = run(tmp_path, "test", f"--ckpt_path={second / 'checkpoints' / 'last.ckpt'}")
    assert json.loads((tested / "test.json").read_text())["fit_seconds"] == pytest.approx(whole, abs=2)


def test_settings_are_recorded_with_the_results(runs: Any) -> None:
    first, _, _ = runs
    assert "model/attack/steps: 1\n" in (first / "hparams.yaml").read_text()
    board = EventAccumulator(str(first)).Reload()
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model/eps"].number_value == 0.1
    assert {"val/robust_acc", "test/clean_acc", "test/robust_acc/PGD-1 @ 0.1"} <= set(board.Tags()["scalars"])
