"""Benchmarks and experiments import, and explain themselves, without the libraries that they compare with."""

import importlib
import sys

import pytest

from tests.conftest import ROOT

MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "experiments")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
PEERS = ("art", "auto_LiRPA", "foolbox", "pyautoattack", "torchattacks")


def test_modules_import_and_show_help_without_the_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for peer in PEERS:
        monkeypatch.setitem(sys.modules, peer, None)
    commands = 0
    for name in MODULES:
        module = importlib.import_module(name)
        if hasattr(module, "main"):
            commands += 1
            with pytest.raises(SystemExit) as end:
                module.main(["--help"])
            assert end.value.code == 0, name
            assert f"python -m {name} " in capsys.readouterr().out, name
    assert commands >= 9
