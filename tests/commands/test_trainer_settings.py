"""Loggers, progress bars, checkpoints and strategies: custom ones replace Rampart's, disabled ones stay off."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli import main
from tests.commands.toy import SETTINGS


def run(folder: Path, command: str, *arguments: str) -> Path:
    """Run a command and return the run's folder."""
    epochs = ["--trainer.max_epochs=1"] if command == "fit" else []
    main([command, *SETTINGS, f"--runs_dir={folder}", "--name=toy", *epochs, *arguments])
    return max((folder / "toy").glob(f"{command}-*"), key=lambda path: int(path.name.split("-")[1]))


def refusal(capsys: Any, folder: Path, command: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(folder, command, *arguments)
    assert stopped.value.code in (1, 2)
    lines: list[str] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(
        {"1.weight": torch.ones(2, 16) * torch.tensor([[-1.0], [1.0]]), "1.bias": torch.tensor([8.0, -8.0])}, path
    )
    return str(path)


BAR = "{class_path: TQDMProgressBar, init_args: {refresh_rate: 100}}"


@pytest.mark.parametrize(
    "bar",
    [
        ["--trainer.callbacks=TQDMProgressBar", "--trainer.callbacks.refresh_rate=100"],
        [f"--trainer.callbacks=[{BAR}, LearningRateMonitor]"],
        [f"--trainer.callbacks+={BAR}", "--trainer.enable_progress_bar=true"],
        ["--trainer.callbacks=RichProgressBar"],
    ],
)
def test_a_custom_progress_bar_replaces_ramparts(tmp_path: Path, bar: list[str]) -> None:
    assert (run(tmp_path, "fit", *bar) / "test.json").is_file()


def test_a_progress_bar_is_refused_if_progress_bars_are_off(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--trainer.enable_progress_bar=false", "--trainer.callbacks=TQDMProgressBar"]
    assert "TQDMProgressBar, which trainer.enable_progress_bar false" in refusal(capsys, tmp_path, "fit", *arguments)
    assert "at most one progress bar" in refusal(
        capsys, tmp_path, "fit", "--trainer.callbacks=[TQDMProgressBar, RichProgressBar]"
    )


def test_without_checkpointing_no_file_is_written_and_the_last_weights_are_tested(tmp_path: Path) -> None:
    folder = run(tmp_path, "fit", "--trainer.enable_checkpointing=false")
    assert not (folder / "checkpoints").exists()
    assert json.loads((folder / "test.json").read_text())["checkpoint"] is None


def test_a_custom_checkpoint_callback_writes_into_the_same_folder(tmp_path: Path) -> None:
    mine = "{class_path: ModelCheckpoint, init_args: {filename: mine, monitor: val/clean_acc, mode: max}}"
    folder = run(tmp_path, "fit", f"--trainer.callbacks=[{mine}]")
    assert {"mine.ckpt", "last.ckpt"} <= {file.name for file in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_barebones_ends_with_results(tmp_path: Path, command: str, weights: str) -> None:
    given = [] if command == "fit" else [f"--ckpt_path={weights}"]
    quiet = run(tmp_path, command, "--trainer.barebones=true", "--trainer.log_every_n_steps=5", *given)
    result = {"fit": "test.json", "predict": "predictions.json"}.get(command, f"{command}.json")
    tables = {"predictions.csv"} if command == "predict" else set()
    of_runs = {"run.json", "run.lock"} if command == "fit" else set()
    assert {file.name for file in quiet.iterdir()} == {"config.yaml", result, *tables, *of_runs}
    if command in ("validate", "test"):
        usual = run(tmp_path, command, *given)
        rows, others = (json.loads((run / result).read_text())["results"] for run in (quiet, usual))
        assert rows == others
        assert rows[0]["accuracy"] == 1


CSV = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir={other}"]
BOARDS = ["--trainer.logger=[{{class_path: TensorBoardLogger, init_args: {{save_dir: '{other}'}}}}]"]


@pytest.mark.parametrize("logger", [CSV, BOARDS])
def test_fit_writes_into_the_runs_folder_with_any_logger(tmp_path: Path, logger: list[str], capsys: Any) -> None:
    given = [argument.format(other=tmp_path / "other") for argument in logger]
    folder = run(tmp_path / "sp ace", "fit", *given, "--curve.num_images=4", "--images.num_images=2")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*")}
    assert {"config.yaml", "test.json", "robustness_curve.png", "checkpoints/last.ckpt"} <= names
    assert "adversarial_images_epoch001.png" in names
    out = capsys.readouterr().out
    assert f"predict --config '{folder / 'config.yaml'}' --ckpt_path '{folder}" in out
    assert ("tensorboard --logdir" in out) == (logger is BOARDS)


COMMANDS = [
    ("validate", "validate.json"),
    ("test", "test.json"),
    ("predict", "predictions.csv"),
    ("export", "network.pth"),
    ("evaluate", "report.html"),
]


@pytest.mark.parametrize(("command", "file"), COMMANDS)
def test_every_command_writes_into_the_runs_folder_with_any_logger(
    tmp_path: Path, command: str, file: str, weights: str
) -> None:
    options = {"export": ["--formats=[pth]", "--image_shape=[1, 4, 4]"], "evaluate": [f"--attacks=[{PGD}]"]}
    logger = [argument.format(other=tmp_path / "other") for argument in CSV]
    folder = run(tmp_path / "runs", command, *logger, f"--ckpt_path={weights}", *options.get(command, []))
    assert {file, "config.yaml"} <= {file.name for file in folder.iterdir()}


PGD = "{class_path: rampart.attacks.PGD, init_args: {steps: 2}}"


def test_fast_dev_run_prints_no_missing_file(tmp_path: Path, capsys: Any) -> None:
    folder = run(tmp_path, "fit")
    capsys.readouterr()
    run(tmp_path, "fit", "--trainer.fast_dev_run=true", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    assert "config.yaml" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "strategy",
    ["ddp_fork", "ddp_spawn", "ddp_notebook", "fsdp", "fsdp_cpu_offload", "ModelParallelStrategy", "deepspeed_stage_2"],
)
def test_unsupported_strategies_are_refused_in_favour_of_ddp(tmp_path: Path, capsys: Any, strategy: str) -> None:
    line = refusal(capsys, tmp_path, "fit", f"--trainer.strategy={strategy}", "--trainer.devices=2")
    assert f"trainer.strategy {strategy} is not possible" in line
    assert "use --trainer.strategy ddp" in line
    assert not list(tmp_path.iterdir())


TRAIN_ONLY = "--data=tests.commands.toy.TrainOnly"
NOTHING = [
    ("fit", "--trainer.max_epochs=0", "trainer.max_epochs must be above 0"),
    ("fit", "--trainer.max_steps=0", "trainer.max_steps must be above 0"),
    ("fit", "--trainer.limit_test_batches=0", "--test_after_fit false"),
    ("fit", "--trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be at least 1, got 0"),
    ("fit", "--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch must be at least 1, got 0"),
    ("fit", "--trainer.val_check_interval=0", "trainer.val_check_interval must be above 0, got 0"),
    ("fit", "--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be at least 0, got -1"),
    ("fit", "--trainer.max_time=00:00:00:00", "nothing was trained: trainer.max_time"),
    ("fit", "--trainer.strategy=xla", "given: trainer.strategy 'xla'"),
    ("fit", "--data.images=0", "no training images"),
    ("validate", TRAIN_ONLY, "TrainOnly has no val_dataloader(), which validate needs: add one"),
    ("predict", TRAIN_ONLY, "TrainOnly has no predict_dataloader()"),
    ("evaluate", TRAIN_ONLY, "TrainOnly has no test_dataloader()"),
    ("test", "--trainer.limit_test_batches=0", "limit_test_batches must be above 0 for test, got 0"),
    ("validate", "--trainer.limit_val_batches=0", "limit_val_batches must be above 0 for validate"),
    ("predict", "--trainer.limit_predict_batches=0", "limit_predict_batches must be above 0 for predict"),
    ("validate", "--data.images=0", "no images to validate on"),
    ("test", "--data.images=0", "no images to test on"),
    ("predict", "--data.images=0", "no images to predict"),
]


@pytest.mark.parametrize(("command", "argument", "message"), NOTHING)
def test_a_run_without_steps_or_batches_is_refused(
    tmp_path: Path, capsys: Any, command: str, argument: str, message: str
) -> None:
    assert message in refusal(capsys, tmp_path, command, argument)


def test_the_saved_config_is_the_one_that_was_run(tmp_path: Path) -> None:
    folder = run(tmp_path, "fit", "--trainer.logger=false")
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["class_path"] == "tests.commands.toy.Toy"
