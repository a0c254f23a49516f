"""Progress of an evaluation, and its end by Ctrl-C."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from commands.evaluation_progress import EvaluationProgress, estimate_forward_passes
from rampart.attacks import APGD, FAB, PGD, Attack, Square
from rampart.evaluation import WorstCaseSearch
from tests.conftest import ROOT
from tests.rampart.evaluation.test_worst_case import Counting, model_and_source


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clock by one that advances one second at each call."""
    clock = count()
    monkeypatch.setattr("commands.evaluation_progress.time.monotonic", lambda: float(next(clock)))


def lines(shows: bool, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> list[str]:
    monkeypatch.setattr(sys, "stderr", stream)
    attacks = [PGD(steps=30), PGD(steps=300)]
    search = WorstCaseSearch(*model_and_source(), attacks, [0.1, 0.3], batch_size=10)
    with EvaluationProgress(search, shows) as progress:
        search.run(progress)
    assert not search.model._forward_pre_hooks
    return [line.strip() for line in re.split(r"[\r\n]", stream.getvalue()) if line.strip()]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_line_shows_batch_attack_eps_robust_images_and_time_left(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    printed = lines(True, monkeypatch, stream())
    assert max(map(len, printed)) < 80
    form = re.compile(r"batch 4/4: PGD-300 @ 0\.3, \d+ of 10 robust, about [\d.]+ (s|min|h) left")
    assert any(form.fullmatch(line) for line in printed), printed[-5:]


def test_nothing_is_shown_without_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(False, monkeypatch, io.StringIO()) == []


def test_log_gets_a_line_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = lines(True, monkeypatch, io.StringIO())
    assert "clean: 39 of 40 images correct; 2 attacks at 2 eps on 4 batches" in printed
    ends = [line for line in printed if "robust of 10" in line]
    assert [line[:10] for line in ends] == ["batch 1/4:", "batch 2/4:", "batch 3/4:", "batch 4/4:"]


@pytest.mark.parametrize(
    ("attack", "calls"),
    [
        (PGD(steps=40, restarts=3), 120),
        (PGD(steps="paper", step_size=0.01), 25),
        (APGD(targets=9), 900),
        (FAB(), 900),
        (Square(), 5000),
        (Counting(), 100),
    ],
)
def test_forward_passes_of_an_attack_are_estimated(attack: Attack, calls: int) -> None:
    assert estimate_forward_passes(attack, 0.1) == calls


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_in_one_line_that_says_how_to_resume(tmp_path: Path, signum: int) -> None:
    command = [
        sys.executable, "cli.py", "evaluate", "--model.network=hubconf.mnist_cnn", "--model.network.weights=fast",
        "--data=DigitsDataModule", "--eps=[0.3]", "--num_images=60", "--batch_size=30", f"--runs_dir={tmp_path}",
        "--trainer.accelerator=cpu",
    ]  # fmt: skip
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("search.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "interrupt" in line.lower()]
    assert "same command resumes" in line
    assert "worst case" not in out
