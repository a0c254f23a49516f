"""The command line as a user sees it, offline and at toy size."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cli import main
from rampart.files import fingerprint
from rampart.networks import MNISTCNN
from tests.conftest import ROOT
from tests.datamodules.test_datamodules import mnist_root  # noqa: F401 (a fixture)

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
# Two phases, each one epoch of two batches; weak attacks and few images.
SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=16",
    "--data.eval_batch_size=50",
    "--data.val_size=50",
    "--trainer.limit_test_batches=2",
    "--trainer.limit_predict_batches=2",
    "--model.val_attack=rampart.attacks.PGD",
    "--model.val_attack.init_args.steps=2",
    "--model.test_attacks=[{eps: 0.1, attack: {class_path: rampart.attacks.PGD, init_args: {steps: 2}}}]",
    "--ramp.phases=[{epochs: 1, end_eps: 0.1}, {epochs: 1, end_eps: 8/255}]",
    "--curve.num_images=20",
    "--images.num_images=3",
]


def run(folder: Path, subcommand: str, *arguments: str, config: str = QUICKSTART) -> None:
    main([subcommand, "--config", config, f"--runs_dir={folder}", *SMALL, *arguments])


def failure(capsys: Any, folder: Path, subcommand: str, *arguments: str, config: str = QUICKSTART) -> tuple[str, int]:
    """Run a command that must fail; return its one-line error and its exit status."""
    with pytest.raises(SystemExit) as stopped:
        run(folder, subcommand, *arguments, config=config)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0], int(str(stopped.value.code))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run's folder, which tests must not change."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder, "fit")
    return folder / "quickstart" / "fit-0"


def test_fit_writes_checkpoints_config_table_and_figures(fitted: Path) -> None:
    names = {file.name for file in fitted.iterdir()}
    assert {"config.yaml", "checkpoints", "test.json", "robustness_curve.png", "robustness_curve.csv"} <= names
    assert "adversarial_images_epoch002.png" in names
    assert (fitted / "checkpoints" / "last.ckpt").is_file()
    report = json.loads((fitted / "test.json").read_text())
    assert [row["name"] for row in report["results"]] == ["clean", "PGD-2 @ 0.1"]
    assert report["results"][1]["attack"]["steps"] == 2
    assert report["checkpoint"] in {str(file) for file in (fitted / "checkpoints").iterdir()}
    assert report["versions"]["torch"]
    assert report["fit_seconds"] > 0
    rows = list(csv.DictReader((fitted / "robustness_curve.csv").open()))
    assert rows[0]["eps"] == "0.0"
    assert int(rows[0]["images"]) == 20


def test_tensorboard_has_scalars_and_images(fitted: Path) -> None:
    events = EventAccumulator(str(fitted))
    events.Reload()
    assert {"train/eps", "train/lr", "train/adv_loss", "train/adv_acc", "val/clean_acc", "val/robust_acc"} <= set(
        events.Tags()["scalars"]
    )
    assert {"adversarial_images", "robustness_curve"} <= set(events.Tags()["images"])
    assert [e.value for e in events.Scalars("train/eps")] == pytest.approx([0.1, 0.1, 8 / 255, 8 / 255])


def test_the_saved_config_keeps_the_users_notation(fitted: Path) -> None:
    config = yaml.safe_load((fitted / "config.yaml").read_text())
    assert config["ramp"]["phases"][1]["end_eps"] == "8/255"
    assert config["seed_everything"] == 0
    assert config["name"] == "quickstart"


def test_a_list_on_the_command_line_replaces_the_configs_list_entirely(tmp_path: Path, capsys: Any) -> None:
    """The quickstart's first phase has start_eps 0; phases from the command line must not inherit it."""
    with pytest.raises(SystemExit):
        run(tmp_path, "fit", "--print_config")
    phases = yaml.safe_load(capsys.readouterr().out)["ramp"]["phases"]
    assert all(phase.get("start_eps") is None for phase in phases)


def test_the_saved_config_reproduces_the_run(fitted: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(fitted / "config.yaml"), f"--runs_dir={tmp_path}"])
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (fitted, tmp_path / "quickstart" / "fit-0")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_run_has_a_new_folder_and_changes_no_other(tmp_path: Path) -> None:
    run(tmp_path, "fit", "--test_after_fit=false")
    first = tmp_path / "quickstart" / "fit-0"
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    run(tmp_path, "fit", "--test_after_fit=false", f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}")
    run(tmp_path, "fit", "--test_after_fit=false", "--trainer.logger=false")
    run(tmp_path, "test", f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}")
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before
    names = {folder.name for folder in (tmp_path / "quickstart").iterdir()}
    assert names == {"fit-0", "fit-1", "fit-2", "test-0"}
    assert (tmp_path / "quickstart" / "fit-2" / "checkpoints" / "last.ckpt").is_file()


def test_the_next_commands_are_printed_and_work(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("runs"), "fit")
    out = capsys.readouterr().out
    assert "PGD-2 @ 0.1" in out
    assert re.search(r"^  tensorboard --logdir runs/quickstart$", out, re.MULTILINE)
    command = re.search(r"^  python cli.py (predict .*)$", out, re.MULTILINE)
    assert command
    main(command[1].split())
    rows = list(csv.DictReader((tmp_path / "runs/quickstart/predict-0/predictions.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(100))
    assert {row["label"] for row in rows} == {str(digit) for digit in range(10)}
    for row in rows:
        assert 0 <= int(row["clean_prediction"]) <= 9
        assert 0.1 <= float(row["clean_confidence"]) <= 1
        assert 0.1 <= float(row["adv_confidence"]) <= 1


def test_command_line_values_override_the_checkpoints_hyper_parameters(fitted: Path, tmp_path: Path) -> None:
    last = fitted / "checkpoints" / "last.ckpt"
    attacks = "--model.test_attacks=[{eps: 0, attack: {class_path: rampart.attacks.PGD}, name: mine}]"
    run(tmp_path, "test", f"--ckpt_path={last}", attacks)
    report = json.loads((tmp_path / "quickstart/test-0/test.json").read_text())
    assert [row["name"] for row in report["results"]] == ["clean", "mine"]
    assert report["results"][0]["accuracy"] == report["results"][1]["accuracy"]


@pytest.mark.parametrize("flag", ["true", "false"])
@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_attacks_have_gradients_with_and_without_inference_mode(
    fitted: Path, tmp_path: Path, flag: str, subcommand: str
) -> None:
    last = fitted / "checkpoints" / "last.ckpt"
    run(tmp_path, subcommand, f"--ckpt_path={last}", f"--trainer.inference_mode={flag}")


def test_plain_weights_can_be_tested_and_used_as_initial_weights_but_not_resumed(tmp_path: Path, capsys: Any) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(MNISTCNN().state_dict(), weights)
    run(tmp_path, "test", f"--ckpt_path={weights}")
    assert "Loaded 8 tensors" in capsys.readouterr().out
    run(tmp_path, "fit", f"--ramp.init_from={weights}", "--test_after_fit=false")
    message, _ = failure(capsys, tmp_path, "fit", f"--ckpt_path={weights}")
    assert "use --ramp.init_from" in message


BAD = [
    (["--model.init_args.epss=0.3"], "'epss' is not accepted"),
    (["--trainer.max_epoch=3"], "unrecognized arguments: --trainer.max_epoch"),
    (["--trainer.max_epochz=3"], "max_epochz"),
    (["--model.eps=-0.1"], "model.eps must be in [0, 1]"),
    (["--model.eps=8"], "did you mean 8/255"),
    (["--model.eps=abc"], "model.eps must be a number or a fraction such as 8/255, got 'abc'"),
    (["--model.attack.init_args.step_size=0"], "step_size must be above 0"),
    (["--model.attack.init_args.norm=L7"], "L7"),
    (["--ramp.phases=[]"], "ramp.phases must have at least one phase"),
    (["--ramp.phases=[{epochs: 1, end_eps: 0.4}]"], "they last 1 epochs, the run lasts 2"),
    (["--ramp.phases=[{epochs: 2, end_epss: 0.4}]"], "'end_epss' is not accepted"),
    (["--ramp.phases=[{epochs: 2, end_eps: -1}]"], "end_eps must be at least 0"),
    (["--ramp.phases=[{epochs: 2, end_eps: 2}]"], "end_eps must be in [0, 1]"),
    (["--ramp.init_from=nowhere.pth"], "checkpoint not found: nowhere.pth: give ramp.init_from the file"),
    (["--ckpt_path=nowhere.ckpt"], "checkpoint not found: nowhere.ckpt"),
    (["--data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
    (
        ["--model.network=rampart.networks.MNISTCNN", "--model.network.init_args.num_classes=5"],
        "labels must be in [0, 5)",
    ),
    (["--name=../elsewhere"], "name must be"),
    (["--curve.eps_grid=[0.4, 0.1]"], "curve.eps_grid must be at least one eps, in increasing order"),
    (["--curve.eps_grid=[2]"], "curve.eps_grid must be in [0, 1]"),
    (["--ckpt_path=last"], "ckpt_path must be a file, got 'last'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments[0] for arguments, _ in BAD])
def test_bad_input_ends_in_one_line(tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    line, status = failure(capsys, tmp_path, "fit", *arguments)
    assert message in line
    assert status in (1, 2)


def test_data_that_cannot_be_downloaded_ends_in_one_line(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    folder = tmp_path / "data"
    line, status = failure(capsys, tmp_path, "fit", "--data=datamodules.MNISTDataModule", f"--data.data_dir={folder}")
    assert "data.data_dir" in line
    assert status == 1


def test_an_unknown_key_in_a_file_fails(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(Path(QUICKSTART).read_text() + "\nsurprise: 1\n")
    line, status = failure(capsys, tmp_path, "fit", config=str(config))
    assert "surprise" in line
    assert status == 2


def test_a_missing_config_is_named(tmp_path: Path, capsys: Any) -> None:
    line, _ = failure(capsys, tmp_path, "fit", config=str(tmp_path / "none.yaml"))
    assert "none.yaml" in line


@pytest.mark.parametrize("subcommand", ["fit", "test"])
@pytest.mark.parametrize("content", [b"text\n", b""])
def test_a_ckpt_path_that_is_no_checkpoint_ends_in_one_line(
    tmp_path: Path, capsys: Any, subcommand: str, content: bytes
) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    line, _ = failure(capsys, tmp_path, subcommand, f"--ckpt_path={tmp_path / 'a.ckpt'}")
    assert "refused" in line


class Payload:
    """Creates a file if it is unpickled by pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("option", ["--ckpt_path", "--ramp.init_from"])
def test_a_checkpoint_with_code_is_refused_and_nothing_is_executed(tmp_path: Path, capsys: Any, option: str) -> None:
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": Payload(tmp_path / "trace")}, tmp_path / "evil.ckpt")
    line, _ = failure(capsys, tmp_path, "fit", f"{option}={tmp_path / 'evil.ckpt'}")
    assert "would execute code: refused, nothing was executed" in line
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("option", ["--ckpt_path", "--ramp.init_from"])
def test_a_checkpoint_of_another_architecture_names_tensors_and_shapes(
    fitted: Path, tmp_path: Path, capsys: Any, option: str
) -> None:
    other = ["--model.network=rampart.networks.MNISTCNN", "--model.network.init_args.num_classes=12"]
    line, _ = failure(capsys, tmp_path, "fit", f"{option}={fitted / 'checkpoints' / 'last.ckpt'}", *other)
    assert "fc2.weight is (10, 1024) in the file and (12, 1024) in the network" in line


def test_a_wrong_command_prints_the_error_and_nothing_else() -> None:
    result = cli("fit", "--config", QUICKSTART, "--model.init_args.epss=0.3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: .*'epss' is not accepted.*\n", result.stderr)


def test_plain_weights_are_named_in_the_report(tmp_path: Path) -> None:
    weights, network = tmp_path / "w.pth", MNISTCNN()
    torch.save(network.state_dict(), weights)
    run(tmp_path, "test", f"--ckpt_path={weights}")
    report = json.loads((tmp_path / "quickstart/test-0/test.json").read_text())
    assert report["checkpoint"] == str(weights)
    assert report["weights"] == fingerprint(*network.state_dict().values())


def test_without_validation_the_last_epoch_is_saved(tmp_path: Path) -> None:
    run(tmp_path, "fit", "--trainer.check_val_every_n_epoch=100", "--test_after_fit=false")
    names = {file.name for file in (tmp_path / "quickstart/fit-0/checkpoints").iterdir()}
    assert names == {"epoch1-step4.ckpt", "last.ckpt"}


def test_exported_files_can_be_used_as_init_from_and_ckpt_path(fitted: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    main(["export", "--config", str(fitted / "config.yaml"), f"--runs_dir={tmp_path}", f"--ckpt_path={checkpoint}"])
    folder = tmp_path / "quickstart" / "export-0"
    assert {file.name for file in folder.iterdir()} == {
        "config.yaml",
        "network.pth",
        "network.safetensors",
        "network.onnx",
    }
    weights = torch.load(folder / "network.pth", weights_only=True)
    assert list(weights) == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2") for kind in ("weight", "bias")
    ]
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], trained[f"network.{name}"]) for name in weights)
    for file in ("network.pth", "network.safetensors"):
        run(tmp_path, "fit", f"--ramp.init_from={folder / file}", "--test_after_fit=false")
        run(tmp_path, "test", f"--ckpt_path={folder / file}")


def test_export_without_ckpt_path_is_refused(tmp_path: Path, capsys: Any) -> None:
    line, status = failure(capsys, tmp_path, "export")
    assert "export needs --ckpt_path" in line
    assert status == 1


def test_traceback_shows_the_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.eps must be"):
        run(tmp_path, "fit", "--model.eps=7", "--traceback")


CONFIGS = sorted(
    str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name != "overlays"
)


# tests/test_cifar10_configs.py runs the others.
@pytest.mark.parametrize("config", [config for config in CONFIGS if "cifar10" not in config])
def test_every_config_runs(tmp_path: Path, config: str, mnist_root: Path) -> None:  # noqa: F811
    data = [f"--data.data_dir={mnist_root}"] if "mnist" in config else []
    main([
        "fit", "--config", str(ROOT / config), f"--runs_dir={tmp_path}", "--trainer.fast_dev_run=true", *data,
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.batch_size=4",
        "--data.eval_batch_size=4", "--model.val_attack=rampart.attacks.PGD", "--model.test_attacks=[]",
        "--curve.num_images=2",
    ])  # fmt: skip


def test_the_strong_test_overlay_replaces_a_configs_test_attacks(capsys: Any) -> None:
    overlay = str(ROOT / "configs/overlays/strong_test.yaml")
    with pytest.raises(SystemExit):
        main(["test", "--config", str(ROOT / "configs/mnist/iat.yaml"), "--config", overlay, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    attacks = [(row["eps"], row["attack"]["init_args"]["restarts"]) for row in model["test_attacks"]]
    assert attacks == [(0.3, 1), (0.4, 1), (0.4, 10), (0.4, 3)]
    assert model["attack"]["init_args"]["steps"] == "paper"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_header_has_its_command(config: str) -> None:
    header = (ROOT / config).read_text().split("seed_everything")[0]
    assert f"python cli.py fit --config {config}" in header
    assert "Expected" in header or "claim" in header


def cli(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "cli.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **settings
    )


def test_help_is_quick_and_lists_the_subcommands() -> None:
    start = time.monotonic()
    result = cli("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("fit", "validate", "test", "predict", "export"))
    assert time.monotonic() - start < 30  # 12 s on an idle machine


def test_a_killed_run_resumes_at_the_right_eps(tmp_path: Path) -> None:
    """Kill a run by SIGKILL and resume it with --ckpt_path: the curves have no gap."""
    arguments = [
        "fit", "--config", QUICKSTART, f"--runs_dir={tmp_path}", *SMALL,
        "--trainer.max_epochs=40", "--trainer.check_val_every_n_epoch=1", "--test_after_fit=false",
        "--ramp.phases=[{epochs: 40, start_eps: 0.01, end_eps: 0.4, interval: epoch}]",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "cli.py", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    last = tmp_path / "quickstart" / "fit-0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    saved = torch.load(last, weights_only=True)
    done = saved["epoch"] + 1
    assert 1 <= done < 40
    main([*arguments, f"--ckpt_path={last}"])
    events = EventAccumulator(str(tmp_path / "quickstart" / "fit-1"))
    events.Reload()
    eps = {event.step: event.value for event in events.Scalars("train/eps")}
    assert min(eps) == 0  # the earlier run's curves, up to the checkpoint
    assert [eps[step] for step in sorted(eps)] == pytest.approx([(step // 2 + 1) / 100 for step in sorted(eps)])
    assert max(eps) == 79


def test_two_processes_train_to_the_schedules_end_and_count_every_test_image_once(tmp_path: Path) -> None:
    schedule = "{class_path: torch.optim.lr_scheduler.LinearLR, init_args: {start_factor: 1.0, end_factor: 0.0}}"
    result = cli(
        "fit", "--config", QUICKSTART, f"--runs_dir={tmp_path}", *SMALL, "--trainer.devices=2",
        "--trainer.strategy=ddp", "--trainer.limit_test_batches=1.0", "--curve.num_images=0",
        "--data.eval_batch_size=99", "--trainer.limit_train_batches=0.02", f"--model.lr_scheduler={schedule}",
        "--model.lr_scheduler.total_iters=-1", "--model.lr_interval=step",
        "--ramp.phases=[{epochs: 2, start_eps: 0, end_eps: 0.3}]",
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    runs = list((tmp_path / "quickstart").iterdir())
    assert [folder.name for folder in runs] == ["fit-0"]
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    # One process has four batches per epoch, each of two processes has two.
    assert [event.value for event in events.Scalars("train/lr")] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [event.value for event in events.Scalars("train/eps")] == pytest.approx([0, 0.1, 0.2, 0.3])
    report = json.loads((runs[0] / "test.json").read_text())
    weights = torch.load(report["checkpoint"], weights_only=True)["state_dict"]
    network = MNISTCNN()
    network.load_state_dict({k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")})
    from datamodules import DigitsDataModule

    data = DigitsDataModule()
    data.setup("test")
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y, _ in data.test_dataloader())
    assert report["results"][0]["accuracy"] == pytest.approx(right / 1000, abs=1e-6)
