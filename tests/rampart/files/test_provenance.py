import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import torch

from rampart.files import provenance
from rampart.kernels import full_float32
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
    assert provenance()["versions"]["torch"]


def test_provenance_is_plain_data() -> None:
    where = json.loads(json.dumps(provenance()))
    assert where["versions"]["torch"] == torch.__version__.split("+", maxsplit=1)[0] or where["versions"]["torch"]
    assert where["threads"] == torch.get_num_threads()
    assert (where["precision"], where["world_size"], where["trainer_precision"]) == ("float32", 1, None)


def test_provenance_records_the_current_arithmetic() -> None:
    assert provenance()["tf32"]  # torch's default for convolutions
    with full_float32("cpu"):
        where = provenance("cuda:1", torch.float64, 4, "bf16-mixed")
    recorded = [
        where[name] for name in ("device", "precision", "world_size", "trainer_precision", "tf32", "deterministic")
    ]
    assert recorded == ["cuda:1", "float64", 4, "bf16-mixed", False, False]
    torch.use_deterministic_algorithms(True)
    try:
        assert provenance()["deterministic"]
    finally:
        torch.use_deterministic_algorithms(False)
