"""The installed package: one top-level name, which a user's folders and files can't shadow."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMON_NAMES = ("attacks", "callbacks", "commands", "configs", "datamodules", "evaluation", "networks", "objectives")
SCRIPT = f"""
import torch
import rampart

network = torch.hub.load({str(ROOT)!r}, "mnist_cnn", weights="fast", source="local")
images, labels = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
adv = rampart.attacks.PGD(steps=1)(network, images, labels, eps=0.1)
assert 0 < (adv - images).abs().max() < 0.1001
assert rampart.evaluation.robust_mask(network, images, labels, rampart.attacks.PGD(steps=1), 0.1).shape == (2,)
"""


def test_one_name_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    setuptools = pytest.importorskip("setuptools", reason="finds the packages as pip does; not in every environment")
    found = setuptools.find_packages(str(ROOT), **settings["packages"]["find"])
    assert {name.split(".")[0] for name in found} == {"rampart"}
    assert settings["py-modules"] == []
    packages = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / "rampart").rglob("__init__.py")}
    assert {name.replace(".", "/") for name in found} == packages
    assert not (ROOT / "setup.py").exists()


def test_a_users_folders_do_not_shadow_rampart(tmp_path: Path) -> None:
    for name in COMMON_NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('shadowed')")
    for name in ("trainer", "data", "files", "schedules"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "script.py").write_text(SCRIPT)
    # The folder of a script comes first in its search path, the repository after it.
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
