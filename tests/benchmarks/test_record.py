"""Records of runs: contents, and no overwriting."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.record import Record, new_file, write_json


def test_a_record_holds_result_command_seed_time_and_machine(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "out.json"
    command = [
        "python",
        "-m",
        "benchmarks.x",
        "--data-dir=/home/me/data",
        "fast=/home/me/weights.pth",
        "configs/a.yaml",
    ]
    record = Record(file, seed=3, command=command)
    record.write({"robust": 1})
    record.write({"robust": 2})  # the same run may write again
    written = json.loads(file.read_text())
    assert written["command"] == "python -m benchmarks.x --data-dir=data fast=weights.pth configs/a.yaml"
    assert (written["seed"], written["robust"]) == (3, 2)
    assert written["wall_seconds"] >= 0
    assert {"commit", "versions", "processor", "gpus", "threads"} <= set(written)


def test_an_earlier_record_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_json(file, {"robust": 1})
    with pytest.raises(FileExistsError, match=r"out\.json exists; give another file, or delete this one first"):
        write_json(file, {"robust": 2})
    with pytest.raises(FileExistsError):
        Record(file, seed=0)
    with pytest.raises(argparse.ArgumentTypeError, match="exists"):
        new_file(str(file))
    assert json.loads(file.read_text()) == {"robust": 1}


def test_without_a_file_a_result_is_only_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Record(None, seed=0).show({"robust": 1})
    assert json.loads(capsys.readouterr().out) == {"robust": 1}
