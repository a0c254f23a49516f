"""``cli.py evaluate`` as a user meets it; ``export`` is tested with the other commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cli import main
from commands.any_network import any_network
from networks import MNISTCNN
from tests.conftest import ROOT
from tests.test_cli import QUICKSTART


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(MNISTCNN().state_dict(), path)
    return path


def arguments(weights: Path, runs: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--config", QUICKSTART, f"--runs_dir={runs}", f"--ckpt_path={weights}", "--eps=[0.002, 2/255]",
        "--num_images=60", "--batch_size=20", "--trainer.accelerator=cpu", *more,
    ]  # fmt: skip


def without_timings(report: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report.read_text())
    del content["timings"], content["made_on"]  # the only parts that may differ from run to run
    return content


def test_a_report_of_every_image(weights: Path, tmp_path: Path, capsys: Any) -> None:
    main(arguments(weights, tmp_path, "--preset=quick"))
    out = capsys.readouterr().out
    folder = tmp_path / "quickstart" / "evaluate-0"
    report = json.loads((folder / "report.json").read_text())
    assert [(s["attack"], s["eps"]) for s in report["stages"]] == [
        (attack, eps) for eps in (0.002, 2 / 255) for attack in ("PGD-20", "Square-200")
    ]
    assert report["images"] == 60
    assert f"worst case at eps 0.002: {100 * report['robust'][0]['accuracy']:.2f}%" in out
    assert len((folder / "per_image.csv").read_text().splitlines()) == 61
    assert f"Report: {folder / 'report.html'}" in out
    pictures = {"curve", "radii", "confusion", "easiest"}
    assert {path.stem for path in folder.glob("*.png")} == pictures
    board = EventAccumulator(str(folder)).Reload()
    assert set(board.Tags()["images"]) == {f"evaluate/{name}" for name in pictures}


def test_attacks_of_ones_own_take_the_presets_place(weights: Path, tmp_path: Path) -> None:
    main(arguments(weights, tmp_path, "--attacks=[{class_path: attacks.PGD, init_args: {steps: 1}}]"))
    report = json.loads((tmp_path / "quickstart/evaluate-0/report.json").read_text())
    assert {stage["attack"] for stage in report["stages"]} == {"PGD-1"}


FACTORY = """
from torch import nn

def linear(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

def said(classes: int = 10) -> nn.Module:
    return linear(classes)

def half(classes: int = 10) -> nn.Module:
    return linear(classes).half()

def text() -> str:
    return "no network"

made = linear()

class Network(nn.Sequential):
    def __init__(self, classes: int = 10):
        super().__init__(nn.Flatten(), nn.Linear(784, classes))
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "foreign_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = tmp_path / "linear.pth"
    torch.manual_seed(25)  # answers six of the images rightly
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 12))
    torch.save(network.state_dict(), weights)
    return ["evaluate", f"--ckpt_path={weights}", f"--runs_dir={tmp_path}", "--data=DigitsDataModule",
            "--num_images=20", "--preset=quick", "--trainer.accelerator=cpu"]  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "said", "Network"])
@pytest.mark.parametrize("split", [True, False], ids=["two words", "one word"])
def test_any_network_can_be_evaluated(foreign: list[str], tmp_path: Path, name: str, split: bool) -> None:
    model = f"foreign_networks.{name}"
    more = ["--model", model, "--eps", "[2/255, 0.02]"] if split else [f"--model={model}", "--eps=[2/255, 0.02]"]
    main([*foreign, *more, "--model.network.classes=12"])
    report = json.loads((tmp_path / "unnamed/evaluate-0/report.json").read_text())
    assert report["search"]["eps"] == [2 / 255, 0.02]
    assert "out_features=12" in report["search"]["network"]


@pytest.mark.parametrize(
    "more", [["--model=foreign_networks.half"], ["--model=foreign_networks.linear", "--trainer.precision=bf16-true"]]
)
def test_all_is_computed_in_single_precision(foreign: list[str], tmp_path: Path, more: list[str]) -> None:
    for model in (["--model=foreign_networks.linear"], more):
        main([*foreign, *model, "--model.network.classes=12", "--eps=[0.001, 0.1]"])
    report, other = (without_timings(tmp_path / f"unnamed/evaluate-{run}/report.json") for run in (0, 1))
    assert report == other
    assert report["clean"]["count"] > 0


def test_a_network_of_ones_own_takes_a_configs_place_wherever_it_stands(foreign: list[str], tmp_path: Path) -> None:
    for config in (
        ["--config", QUICKSTART, "--model=foreign_networks.said"],
        ["--model=foreign_networks.said", f"--config={QUICKSTART}"],
    ):
        main([*foreign, *config, "--model.network.classes=12", "--eps=[0.1]"])
    for report in (tmp_path / "quickstart").glob("evaluate-*/report.json"):
        assert "out_features=12" in json.loads(report.read_text())["search"]["network"]


def test_what_is_no_import_path_of_a_network_is_left_alone() -> None:
    for model in (
        "MNISTClassifier",
        "lightning_modules.MNISTClassifier",
        "{class_path: x.y}",
        "model.yaml",
        "a/b.json",
    ):
        arguments = ["evaluate", f"--model={model}", "--eps", "[0.1]"]
        assert any_network(arguments) == arguments
    assert any_network(["fit", "--model=torch.nn.Linear"]) == ["fit", "--model=torch.nn.Linear"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model=foreign_networks.nothing", "--eps=[0.1]"], "model must be the import path of a network"),
        (["--model=no_such_module.Network", "--eps=[0.1]"], "No module named 'no_such_module'"),
        (["--model=foreign_networks.linear"], "eps must be given: --eps '[8/255]'"),
        (["--model=foreign_networks.linear", "--eps=0.1"], "eps"),
        (["--model=foreign_networks.made", "--eps=[0.1]"], "must be a class or a function, got foreign_networks.made"),
        (["--model=foreign_networks.said", "--eps=[0.1]"], "does not fit Sequential"),
        (["--model=foreign_networks.text", "--eps=[0.1]"], "foreign_networks.text"),
    ],
)
def test_a_network_that_cant_be_evaluated_is_one_line(
    foreign: list[str], capsys: Any, more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*foreign, *more])
    assert stopped.value.code != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--eps=[0.3, 0.1]", "eps must be at least one, above 0 and rising"),
        ("--eps=[8]", "did you mean 8/255"),
        ("--preset=nonsense", "autoattack"),
        ("--num_images=0", "num_images must be at least 1, got 0"),
        ("--num_images=1001", "num_images must be from 1 to the test images' number, 1000, got 1001"),
        ("--batch_size=0", "batch_size must be at least 1"),
        ("--ckpt_path=nowhere.pth", "checkpoint not found: nowhere.pth"),
        ("--ckpt_path=null", "evaluate needs --ckpt_path"),
    ],
)
def test_a_wrong_command_is_one_line(weights: Path, tmp_path: Path, capsys: Any, wrong: str, message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments(weights, tmp_path, wrong))
    assert stopped.value.code != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_report(weights: Path, tmp_path: Path) -> None:
    attacks = (
        "--attacks=[{class_path: attacks.Square, init_args: {queries: 200}}, "
        "{class_path: attacks.FAB, init_args: {targets: 3, steps: 30}}]"
    )
    command = [sys.executable, "cli.py", *arguments(weights, tmp_path / "killed", attacks)]
    searches = tmp_path / "killed" / "quickstart" / "searches"
    killed_at = []
    for batches in (1, 4):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(searches.glob("*/*.safetensors"))) >= batches:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        process.wait()
        killed_at.append(process.returncode)
    assert -signal.SIGKILL in killed_at
    finished = {file: file.stat().st_mtime_ns for file in searches.glob("*/*.safetensors")}
    assert finished
    main(arguments(weights, tmp_path / "killed", attacks))
    main(arguments(weights, tmp_path / "whole", attacks))
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    reports = [
        sorted((tmp_path / run / "quickstart").glob("evaluate-*/report.json"))[-1] for run in ("killed", "whole")
    ]
    assert without_timings(reports[0]) == without_timings(reports[1])
    rows = [(report.parent / "per_image.csv").read_text() for report in reports]
    assert rows[0] == rows[1]


def test_ranks_share_the_batches_and_one_reports(weights: Path, tmp_path: Path) -> None:
    def evaluate(launcher: list[str], runs: Path, *more: str) -> tuple[str, dict[str, Any]]:
        command = [sys.executable, *launcher, "cli.py", *arguments(weights, runs, "--preset=quick", *more)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun has it: sums of another order fool others
        done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=True)
        (report,) = runs.rglob("report.json")
        return done.stdout, without_timings(report)

    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    out, report = evaluate(launcher, tmp_path / "shared", "--trainer.devices=2")
    assert out.count("worst case at eps 0.002") == 1
    assert report == evaluate([], tmp_path / "alone")[1]
