"""Several processes train and evaluate what one process does, by the same commands."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rampart.files.weight_files import read_checkpoint
from tests.cluster.equal_commands import FITS, last_checkpoint, run_commands
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    run_commands(folder, 1)
    return folder


def run_in_processes(module: str, arguments: list[Any], number: int) -> None:
    """Run a program in several processes, which are started as Lightning's children are."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")} | {
        "OMP_NUM_THREADS": "1", "WORLD_SIZE": f"{number}", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(arguments)], cwd=ROOT, text=True,
            env=environment | {"LOCAL_RANK": f"{rank}"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(number)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * number, "\n".join(printed)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def several(request: Any, one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several processes, which evaluate the weights that one process has trained."""
    folder = tmp_path_factory.mktemp("several")
    arguments = [str(folder), request.param, str(last_checkpoint(one, "float32"))]
    run_in_processes("tests.cluster.equal_commands", arguments, request.param)
    return folder


@pytest.mark.parametrize("name", FITS)
def test_trainings_end_with_the_weights_of_one_process(one: Path, several: Path, name: str) -> None:
    """In float32, rounding might also change the sign of a tiny gradient, and so move a pixel of an attack."""
    expected, found = (read_checkpoint(last_checkpoint(folder, name)) for folder in (one, several))
    assert found["global_step"] == expected["global_step"] == (6 if name == "averaged" else 12)
    assert ("current_model_state" in expected) == (name == "averaged")
    tolerance = 1e-5 if name == "float32" else 1e-13
    for key in ("state_dict", "current_model_state"):
        if key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance)


def test_evaluations_have_the_counts_of_one_process(one: Path, several: Path) -> None:
    for command in ("validate", "test"):
        expected, found = (
            json.loads((folder / f"evaluations/run/{command}-0/{command}.json").read_text())
            for folder in (one, several)
        )
        for key in ("world_size", f"{command}_seconds"):
            del expected[key], found[key]
        assert found == expected
    for file in ("predict-0/predictions.csv", "test-0/robustness_curve.csv"):
        expected, found = (
            list(csv.DictReader((folder / "evaluations/run" / file).open(newline=""))) for folder in (one, several)
        )
        assert len(found) == len(expected)
        for row, expected_row in zip(found, expected, strict=True):
            assert row == expected_row
