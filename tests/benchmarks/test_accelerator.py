"""The benchmark of accelerators at toy size on a CPU: sections, processes, commands, tables."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import accelerator
from benchmarks.accelerator_sections import agreement, attack_step, worker
from benchmarks.accelerator_sections.checks import check_record
from benchmarks.accelerator_sections.command_line import build_evaluate, build_fit
from benchmarks.accelerator_sections.running import run_sections
from benchmarks.accelerator_sections.setting import SIZES, Row, Rows, Setting
from benchmarks.accelerator_sections.standalone import rampart_probe
from benchmarks.accelerator_sections.tables import format_tables, plot_steps
from benchmarks.accelerator_sections.two_ranks import EQUAL
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from commands.command_line import run_command
from tests.conftest import ROOT

TINY = replace(
    SIZES["toy"],
    cases=(("MNIST CNN", 2),),
    steps=(2, 1),
    precisions=("float32",),
    agreement_images=2,
    attack_steps=1,
)


def test_float32_gradients_and_images_agree_with_float64_and_between_forms() -> None:
    rows = Rows()
    agreement.measure(Setting("cpu", TINY), rows)
    gradients = [row for row in rows.rows if row["table"] == "gradients"]
    attacks = [row for row in rows.rows if row["table"] == "adversarial images"]
    assert len(gradients) == 2
    assert all(row["gradient_relative_error"] < 1e-4 and row["logits_relative_error"] < 1e-5 for row in gradients)
    assert {"FGSM", "PGD, L2", "APGD-CE", "APGD-T", "FAB", "Square"} <= {row["attack"] for row in attacks}
    assert all(row["equal_pixels"] == 1 and row["robust_eager"] == row["robust_captured"] for row in attacks)
    assert not [row for row in rows.rows if row["table"] == "left out"]


def test_attack_steps_have_a_row_per_contestant_and_libraries_that_are_missing_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    rows = Rows()
    attack_step.measure(Setting("cpu", TINY), rows)
    steps = [row for row in rows.rows if row["table"] == "attack_step"]
    ours = [row for row in steps if row["contestant"] == "Rampart, eager, float32"]
    assert [row["steps"] for row in ours] == [2, 1]
    assert all(row["ms_per_step"] > 0 and row["speed_over_baseline"] is None for row in steps)
    papers = next(row for row in steps if row["contestant"] == "paper's loop, float32")
    assert papers["equal_pixels"] == 1
    assert [row["what"] for row in rows.rows if row["table"] == "left out"].count("torchattacks PGD, MNIST CNN") == 1
    (panel,) = plot_steps(rows.rows).axes
    assert panel.get_title() == "MNIST CNN, batch 2"


def test_commands_of_fit_evaluate_and_two_ranks_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(worker.STANDALONE))
    setting = Setting("cpu", SIZES["full"])
    fits = [build_fit(recipe, setting, ROOT, tmp_path) for recipe in setting.size.recipes]
    for command in [*fits, [*fits[1], *EQUAL], build_evaluate(setting, tmp_path / "x.pth", tmp_path, "quick", 3)]:
        with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as end:
            run_command([*command[1:], "--print_config"])
        assert end.value.code == 0
        assert str(tmp_path) in shown.getvalue()


def test_a_failed_process_is_described_by_the_last_error_that_it_wrote(tmp_path: Path) -> None:
    assert worker.PIPES == rampart_probe.PIPES
    code = "print('begun'); print('ValueError: no such thing', flush=True); raise SystemExit(1)"
    with Worker(["-c", code], tmp_path, tmp_path / "log.txt") as process, pytest.raises(WorkerError, match="no such"):
        process.receive(60)
    code = "import time; print('still busy', flush=True); time.sleep(60)"
    with Worker(["-c", code], tmp_path, tmp_path / "log.txt") as process, pytest.raises(WorkerError, match="no reply"):
        process.receive(0.2)


def test_a_section_that_the_clock_stops_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.accelerator_sections.running.GRACE", 0.0)
    (tmp_path / "agreement.json").write_text(json.dumps([{"table": "gradients", "network": "MNIST CNN"}]))
    settings = {"device": "cpu", "size": "toy", "seed": 0, "data_dir": None, "baseline": None}
    (rows,) = run_sections(["agreement"], settings, 0.5, tmp_path, ahead=False)
    assert [row["table"] for row in rows] == ["gradients", "left out", "sections"]
    assert "stopped by the clock" in rows[1]["why"]


def test_requirements_are_compared_with_the_fastest_baseline_and_peer() -> None:
    def step(contestant: str, ms: float, **more: Any) -> Row:
        shared = {"table": "attack_step", "network": "ResNet-18", "batch_size": 512, "steps": 20}
        return shared | {"contestant": contestant, "ms_per_step": ms} | more

    rows = [
        step("Rampart, captured, bfloat16", 4.0),
        step("Rampart, captured, float32", 30.0, equal_pixels=1.0),
        step("baseline, tf32", 8.0),
        step("baseline, float32", 50.0, equal_pixels=0.5),
        step("foolbox LinfPGD, tf32", 12.0),
        {"table": "fit", "recipe": "fast", "speed_over_baseline": 5.5, "host_waits": 2, "rampart_peak_gib": None},
    ]
    checks = {row["check"]: row for row in check_record(rows, "full")}
    assert checks["attack step, ResNet-18, batch 512, over the baseline"]["fulfilled"] is False
    assert checks["attack step, ResNet-18, batch 512, over the fastest peer"]["measured"] == 3
    assert checks["equal pixels, ResNet-18, batch 512: baseline, float32"]["fulfilled"] is False
    assert checks["fit, fast, over the baseline"]["fulfilled"] is True
    assert checks["fit, fast, host waits"]["fulfilled"] is False
    assert "| **no** |" in format_tables(check_record(rows, "full"))


def test_one_command_times_fit_and_writes_record_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    accelerator.main(["--size=toy", "--device=cpu", "--sections=fit", f"--out={out}"])
    (row,) = [row for row in json.loads(out.read_text())["rows"] if row["table"] == "fit"]
    assert row["rampart_updates_per_second"] > 0
    assert row["host_waits"] is None
    assert "rampart updates per second" in out.with_suffix(".md").read_text()
    assert "rampart updates per second" in capsys.readouterr().out
    assert out.with_suffix(".png").exists()
    with pytest.raises(SystemExit):
        accelerator.main([f"--out={out}"])


def test_wrong_options_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--sections=speed"], "--sections must be among agreement, attack_step, fit, evaluation, two_ranks, trained"),
        ([f"--baseline={tmp_path}"], "--baseline must be a folder that holds cli.py"),
        ([f"--data-dir={tmp_path}"], "--data-dir must be a folder that holds MNIST/raw"),
    ):
        with pytest.raises(SystemExit):
            accelerator.main(options)
        assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_captured_attacks_agree_with_eager_ones_on_a_gpu() -> None:
    rows, device = Rows(), torch.accelerator.current_accelerator()
    assert device is not None
    agreement.measure(Setting(device.type, replace(TINY, precisions=("float32", "tf32", "bfloat16"))), rows)
    exact = [row for row in rows.rows if row.get("precision") == "float32"]
    assert all(row["gradient_relative_error"] < 1e-3 for row in exact)
    assert all(row["equal_pixels"] > 0.99 for row in rows.rows if row["table"] == "adversarial images")
