import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

from rampart.evaluation import provenance as provenance_function
from tests.conftest import ROOT


def installed_in(folder: Path) -> ModuleType:
    """Import a copy of the module from a folder."""
    folder.mkdir(parents=True)
    path = Path(shutil.copy(ROOT / "rampart" / "files" / "provenance.py", folder))
    spec = importlib.util.spec_from_file_location("copied_provenance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *names, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_repository_that_holds_the_code(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    assert installed_in(tmp_path / ".venv" / "site").provenance()["commit"] is None
    tracked = installed_in(tmp_path / "evaluation")
    git(tmp_path, "add", "evaluation")
    git(tmp_path, "commit", "-q", "-m", "ours")
    assert tracked.provenance()["commit"].removesuffix("+") == git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert tracked.provenance()["commit"].endswith("+")  # .venv is not committed
    assert provenance_function()["versions"]["torch"]
