"""The ``evaluate`` command, from the command line to its files."""

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
from rampart.networks import MNISTCNN
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
    # The only parts that may differ from run to run.
    del content["timings"], content["certificate_timings"], content["made_on"]
    return content


def test_evaluate_writes_table_report_and_figures(weights: Path, tmp_path: Path, capsys: Any) -> None:
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
    certified = report["certificates"]["certified"][0]
    assert f"certified at eps 0.002: {100 * certified['accuracy']:.2f}%" in out
    assert certified["count"] <= report["robust"][0]["count"]
    pictures = {"curve", "radii", "confusion", "bounds", "easiest"}
    assert {path.stem for path in folder.glob("*.png")} == pictures
    board = EventAccumulator(str(folder)).Reload()
    assert set(board.Tags()["images"]) == {f"evaluate/{name}" for name in pictures}


def test_report_is_written_if_figures_fail(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise ImportError("no matplotlib")

    monkeypatch.setattr("commands.evaluate.worst_case_figures", broken)
    few = ("--attacks=[{class_path: rampart.attacks.PGD, init_args: {steps: 1}}]", "--num_images=4")
    with pytest.warns(UserWarning, match="the figures could not be drawn"):
        main(arguments(weights, tmp_path, *few))
    assert (tmp_path / "quickstart/evaluate-0/report.html").is_file()


def test_certificates_are_optional(weights: Path, tmp_path: Path, capsys: Any) -> None:
    few = ("--attacks=[{class_path: rampart.attacks.PGD, init_args: {steps: 1}}]", "--num_images=4", "--certify=false")
    main(arguments(weights, tmp_path, *few))
    assert json.loads((tmp_path / "quickstart/evaluate-0/report.json").read_text())["certificates"] is None
    assert "certified" not in capsys.readouterr().out


def test_custom_attacks_replace_the_preset(weights: Path, tmp_path: Path) -> None:
    main(arguments(weights, tmp_path, "--attacks=[{class_path: rampart.attacks.PGD, init_args: {steps: 1}}]"))
    report = json.loads((tmp_path / "quickstart/evaluate-0/report.json").read_text())
    assert {stage["attack"] for stage in report["stages"]} == {"PGD-1"}


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
        ("--certify=true --preset=pgd --norm=L2", "certify: there are certificates in Linf alone"),
    ],
)
def test_an_invalid_setting_ends_in_one_line(
    weights: Path, tmp_path: Path, capsys: Any, wrong: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments(weights, tmp_path, *(f"--{word}" for word in wrong[2:].split(" --"))))
    assert stopped.value.code != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_killed_evaluation_resumes_and_writes_the_same_report(weights: Path, tmp_path: Path) -> None:
    attacks = (
        "--attacks=[{class_path: rampart.attacks.Square, init_args: {queries: 200}}, "
        "{class_path: rampart.attacks.FAB, init_args: {targets: 3, steps: 30}}]"
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


def test_ranks_share_the_batches_and_one_writes_the_report(weights: Path, tmp_path: Path) -> None:
    def evaluate(launcher: list[str], runs: Path, *more: str) -> tuple[str, dict[str, Any]]:
        command = [sys.executable, *launcher, "cli.py", *arguments(weights, runs, "--preset=quick", *more)]
        one_thread = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
        }  # as under torchrun, for equal rounding
        done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=True)
        (report,) = runs.rglob("report.json")
        return done.stdout, without_timings(report)

    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    out, report = evaluate(launcher, tmp_path / "shared", "--trainer.devices=2")
    assert out.count("worst case at eps 0.002") == 1
    assert report == evaluate([], tmp_path / "alone")[1]
