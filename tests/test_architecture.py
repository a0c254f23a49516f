"""Rules of the packages: allowed imports and sizes of files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIGHTNING_ROOMS = {"lightning_modules", "datamodules", "callbacks"}
TORCH_ROOMS = sorted(file.parent.name for file in (ROOT / "rampart").glob("*/__init__.py"))
# The rooms of rampart that each room may import.
MAY_IMPORT = {
    "attacks": set(),
    "kernels": set(),
    "data": {"attacks"},
    "schedules": {"attacks"},
    "networks": {"kernels"},
    "bounds": {"kernels", "networks"},
    "objectives": {"attacks", "bounds", "kernels", "networks"},
    "files": {"kernels", "networks"},
    "evaluation": {"attacks", "bounds", "data", "files", "kernels", "networks"},
}


def imported_modules(file: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= named if node.module == "rampart" else {node.module}
    return names


def imported(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(file)}


@pytest.mark.parametrize("room", sorted(LIGHTNING_ROOMS))
def test_the_lightning_packages_do_not_import_one_another(room: str) -> None:
    files = list((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & (LIGHTNING_ROOMS - {room} | {"cli", "commands", "experiments"}), file


def test_rampart_imports_nothing_of_lightning() -> None:
    block = "import sys; sys.modules['pytorch_lightning'] = sys.modules['lightning'] = None"
    rooms = ", ".join(f"rampart.{room}" for room in TORCH_ROOMS)
    command = [sys.executable, "-c", f"{block}; import rampart; {rooms}"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    for file in (ROOT / "rampart").rglob("*.py"):
        assert not imported(file) & (LIGHTNING_ROOMS | {"cli", "commands", "experiments", "pytorch_lightning"}), file


def test_imports_between_rooms_of_rampart_form_no_circle() -> None:
    assert set(MAY_IMPORT) == set(TORCH_ROOMS)
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError


@pytest.mark.parametrize("room", TORCH_ROOMS)
def test_a_room_of_rampart_imports_only_rooms_below_it(room: str) -> None:
    for file in (ROOT / "rampart" / room).rglob("*.py"):
        for module in imported_modules(file):
            package, _, rest = module.partition(".")
            if package == "rampart":
                assert rest.split(".")[0] in MAY_IMPORT[room] | {room}, f"{file} imports {module}"


def test_files_stay_small() -> None:
    for room in LIGHTNING_ROOMS | {"rampart", "commands"}:
        for file in (ROOT / room).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 300, file


def test_functions_stay_short() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    long = []
    for name in names:
        if (ROOT / name).exists():
            for node in ast.walk(ast.parse((ROOT / name).read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                    lines = node.end_lineno - node.lineno + 1
                    long += [f"{name}: {node.name} has {lines} lines"] if lines > 50 else []
    assert not long, "at most 50 lines per function:\n" + "\n".join(long)
