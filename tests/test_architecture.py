"""The rooms' rules: what imports what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIGHTNING_ROOMS = {"lightning_modules", "datamodules", "callbacks"}
TORCH_ROOMS = sorted(file.parent.name for file in (ROOT / "rampart").glob("*/__init__.py"))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(LIGHTNING_ROOMS))
def test_the_lightning_packages_do_not_import_one_another(room: str) -> None:
    files = list((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & (LIGHTNING_ROOMS - {room} | {"cli", "commands"}), file


@pytest.mark.parametrize("room", TORCH_ROOMS)
def test_rampart_imports_nothing_of_lightning(room: str) -> None:
    block = "import sys; sys.modules['pytorch_lightning'] = sys.modules['lightning'] = None"
    command = [sys.executable, "-c", f"{block}; import rampart; rampart.{room}"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    for file in (ROOT / "rampart" / room).glob("*.py"):
        assert not imported(file) & (LIGHTNING_ROOMS | {"cli", "commands", "pytorch_lightning"}), file


def test_files_stay_small() -> None:
    for room in LIGHTNING_ROOMS | {"rampart", "commands"}:
        for file in (ROOT / room).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 300, file
