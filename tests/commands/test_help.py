"""Help texts and ``--version``."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from cli import main
from tests.conftest import ROOT


def printed(capsys: Any, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code in (0, None)
    return str(capsys.readouterr().out)


def test_help_begins_with_examples_and_describes_every_command(capsys: Any) -> None:
    text = printed(capsys, "--help")
    head = text.splitlines()[:15]
    assert sum("python cli.py" in line for line in head) == 5
    assert max(len(line) for line in head) <= 80
    assert "Lightning Trainer command line tool" not in text
    commands = re.findall(r"^    (\w+) +(.*(?:\n {20,}.*)*)", text[text.index("subcommands") :], re.MULTILINE)
    assert [name for name, _ in commands] == ["fit", "validate", "test", "predict", "evaluate", "export"]
    assert all(sentence.endswith(".") for _, sentence in commands)


def test_ramparts_options_come_before_lightnings(capsys: Any) -> None:
    text = printed(capsys, "evaluate", "--help")
    own = ["--name", "--runs_dir", "--ckpt_path", "--preset", "--eps", "--model.help", "--ramp.phases"]
    places = [text.index(f"\n  {option}") for option in own]
    assert max(places) < text.index("\n  --trainer.")
    assert text.index("\n  --preset") < 5000


def test_the_help_of_a_class_does_not_list_every_layer_of_torch() -> None:
    # In its own process: here it would list the classes that other tests define.
    command = [sys.executable, "cli.py", "fit", "--model.help"]
    environment = os.environ | {"COLUMNS": "80"}
    text = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert len(text.splitlines()) < 150
    assert "any other by its" in text


def test_version_prints_commit_and_torch(capsys: Any) -> None:
    main(["--version"])
    assert re.fullmatch(rf"rampart .* \(commit .*\), python .*torch {re.escape(torch.__version__.split('+')[0])}.*\n",
                        capsys.readouterr().out)  # fmt: skip
