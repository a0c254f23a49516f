import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import main
from commands.config_listing import find_experiments, read_header, suggest_config
from tests.conftest import ROOT


def test_every_config_is_listed_with_its_purpose_cost_and_data(capsys: Any) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 10
    for file in files:
        (at,) = [at for at, line in enumerate(lines) if line.startswith(file)]
        assert lines[at].endswith(".")
        assert re.fullmatch(
            r"    (Data: (Digits|MNIST|CIFAR10)\. )?Cost: .*gradient evaluations per .*\.", lines[at + 1]
        )
        overlay = next(at for at, line in enumerate(lines) if line.startswith("Overlays"))
        assert ("overlays" in file) == (at > overlay) == ("Data" not in lines[at + 1])
    assert max(map(len, lines)) <= 120
    assert {found.path.as_posix() for found in find_experiments()} >= set(files)


def test_a_saved_config_is_no_experiment() -> None:
    assert read_header(ROOT / "pretrained/mnist/fast/config.yaml") is None


def test_the_list_appears_without_torch_and_from_any_folder(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['torch'] = None; from cli import main; main()"
    command = [sys.executable, "-c", code, "configs"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert f"\n{ROOT / 'configs/quickstart.yaml'}: " in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("configs/mnist/fats.yaml", "configs/mnist/fast.yaml"),
        ("configs/mnist/fast.yml", "configs/mnist/fast.yaml"),
        ("fast", "configs/mnist/fast.yaml"),
        ("mnist/fast", "configs/mnist/fast.yaml"),
        ("fast.yaml", "configs/mnist/fast.yaml"),
        ("quickstart", "configs/quickstart.yaml"),
        ("configs/iat.yaml", "configs/mnist/iat.yaml"),
        ("strong_tests", "configs/overlays/strong_test.yaml"),
        ("zzz", ""),
    ],
)
def test_the_nearest_config_is_suggested(monkeypatch: Any, given: str, nearest: str) -> None:
    monkeypatch.chdir(ROOT)
    assert suggest_config(given) == nearest


def test_a_file_of_the_users_is_suggested_first(tmp_path: Path) -> None:
    shutil.copy(ROOT / "configs/quickstart.yaml", tmp_path / "fast.yaml")
    assert suggest_config(str(tmp_path / "fats.yaml")) == str(tmp_path / "fast.yaml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fit", "-c", "fast"],
         "error: there is no fast; did you mean configs/mnist/fast.yaml? `python cli.py configs` lists all configs\n"),
        (["test", "--config=zzz"], "error: there is no zzz; `python cli.py configs` lists all configs\n"),
        (["configs", "mnist"], "error: configs takes no arguments, got mnist\n"),
        (["confgs"], "error: no command is called 'confgs'; did you mean configs?\n"),
    ],
)  # fmt: skip
def test_a_wrong_name_ends_in_one_line(
    tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.config_listing.ROOT", tmp_path)
    for file in find_files():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == line
    assert sorted(tmp_path.rglob("*")) == before


def find_files() -> list[Path]:
    return [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")]
