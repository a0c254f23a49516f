"""The run's folder: created once, the same for all ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.utilities import rank_zero_only

from commands.run_folder import FOLDER_VARIABLE, RunFolderCallback, create_run_folder


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank)


def test_a_process_that_rank_0_starts_uses_rank_0s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "another run's")
    (tmp_path / "a" / "fit-0").mkdir(parents=True)
    claimed = create_run_folder(str(tmp_path), "a", "fit")
    assert claimed == tmp_path / "a" / "fit-1"
    as_rank(monkeypatch, 1)
    assert create_run_folder(str(tmp_path), "a", "fit") == claimed


def test_the_number_of_a_removed_run_is_not_used_again(tmp_path: Path) -> None:
    for name in ("fit-1", "fit-3", "fit-7-copy", "test-9"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert create_run_folder(str(tmp_path), "a", "fit") == tmp_path / "a" / "fit-4"


def test_a_process_that_torchrun_starts_gets_the_folder_at_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    as_rank(monkeypatch, 1)
    folder = create_run_folder(str(tmp_path), "a", "fit")
    assert folder.parent == tmp_path / "a"
    assert not list(tmp_path.iterdir())
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda _: (tmp_path / "a" / "fit-7", False, None, [])),
        default_root_dir=str(folder),
    )
    RunFolderCallback(folder).setup(trainer, trainer, "fit")
    assert trainer.run_folder == tmp_path / "a" / "fit-7"
    assert trainer._default_root_dir == str(tmp_path / "a" / "fit-7")


def test_the_first_process_of_another_machine_creates_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    create_run_folder(str(tmp_path), "a", "fit")
    assert not list(tmp_path.iterdir())


def test_an_impossible_runs_dir_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"runs_dir: no folder can be created in .*file/a: Not a directory"):
        create_run_folder(str(tmp_path / "file"), "a", "fit")
    with pytest.raises(ValueError, match="runs_dir must be a folder's path, got ''"):
        create_run_folder("", "a", "fit")
