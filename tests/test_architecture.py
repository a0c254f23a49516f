"""Rules of the packages: allowed imports and sizes of files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIGHTNING_PACKAGES = {"lightning_modules", "datamodules", "callbacks"}
# What rampart may import besides Python's standard library.
LIBRARIES = {"filelock", "jinja2", "matplotlib", "numpy", "onnx", "onnxscript", "safetensors", "torch"}
TORCH_PACKAGES = sorted(file.parent.name for file in (ROOT / "rampart").glob("*/__init__.py"))
# The subpackages of rampart that each of them may import.
MAY_IMPORT = {
    "kernels": set(),
    "attacks": {"kernels"},
    "data": {"attacks"},
    "schedules": {"attacks"},
    "collapse": {"attacks"},
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
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file}:{node.lineno}: imports name their package in full"
            assert node.level == 0, f"{file}:{node.lineno}: imports name their package in full"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= named if node.module == "rampart" else {node.module}
    return names


def imported(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(file)}


@pytest.mark.parametrize("package", sorted(LIGHTNING_PACKAGES))
def test_the_lightning_packages_do_not_import_one_another(package: str) -> None:
    files = list((ROOT / package).glob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & (LIGHTNING_PACKAGES - {package} | {"cli", "commands", "experiments"}), file


def test_rampart_imports_nothing_of_lightning() -> None:
    block = "import sys; sys.modules['pytorch_lightning'] = sys.modules['lightning'] = None"
    packages = ", ".join(f"rampart.{package}" for package in TORCH_PACKAGES)
    command = [sys.executable, "-c", f"{block}; import rampart; {packages}"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    for file in (ROOT / "rampart").rglob("*.py"):
        assert imported(file) <= {"rampart", *LIBRARIES, *sys.stdlib_module_names}, file


def test_imports_between_subpackages_form_no_circle() -> None:
    assert set(MAY_IMPORT) == set(TORCH_PACKAGES)
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError


@pytest.mark.parametrize("package", TORCH_PACKAGES)
def test_a_subpackage_imports_only_those_below_it(package: str) -> None:
    for file in (ROOT / "rampart" / package).rglob("*.py"):
        for module in imported_modules(file):
            top, _, rest = module.partition(".")
            if top == "rampart":
                assert rest.split(".")[0] in MAY_IMPORT[package] | {package}, f"{file} imports {module}"


def test_files_stay_small() -> None:
    for package in LIGHTNING_PACKAGES | {"rampart", "commands"}:
        for file in (ROOT / package).rglob("*.py"):
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
