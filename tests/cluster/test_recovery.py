"""Trainings that collapse and recover: killed by SIGKILL and resumed, and as one process and as several."""

import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from rampart.files.weight_files import read_checkpoint
from tests.cluster.recovery_commands import COLLAPSE, FIT, FITS, GLOBAL_BATCH, read_events, read_steps, run_commands
from tests.cluster.recovery_commands import shorten as shorten_run
from tests.cluster.test_equal_training import run_in_processes
from tests.cluster.test_kills import Kill, check_files, finish, run
from tests.commands.test_chaos import assert_equal

SHORT = "iat"
"""Training that is compared between one process and two in the normal suite."""

slow = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _shorten() -> Generator[None]:
    """Shorten runs in this process too, until the end of this file."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_run(patch.setattr)
        yield


def read_run(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint of the only run of a folder."""
    (file,) = folder.rglob("last.ckpt")
    return read_checkpoint(file)


def choose_kills(whole: Path) -> list[Kill]:
    """Return kills around a recovery, if a checkpoint is saved after every step: a start resumes where the last ended.

    They are before the collapse, before the alarm, in the recovery twice, after it, while eps rises, and at the end.
    """
    (event,), steps = read_events(whole), read_steps(whole)
    back = next(step for step in range(event["step"], event["step"] + 5) if steps[step][0] < steps[step - 1][0])
    rises = next(step for step in range(back, max(steps)) if steps[step][0] > steps[back][0])
    kills, start = list[Kill](), 0
    for step in (COLLAPSE - 5, COLLAPSE + 3, "recovered", "written", back, back + 1, rises + 2, max(steps) - 3):
        if isinstance(step, str):
            kills.append(Kill(step))
            start = back - 1
        else:
            kills.append(Kill("step", step - start + 1))
            start = step
    return kills


def compare(whole: Path, broken: Path, devices: int) -> None:
    """Check that a run that was killed has the weights, the state, the events and the steps of the other one."""
    one, other = read_run(whole), read_run(broken)
    for key in ("epoch", "global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_equal(one.get(key), other.get(key), key)
    for key in one["callbacks"]:
        if key.startswith(("EpsilonRampCallback", "CollapseGuard")):
            assert_equal(one["callbacks"][key], other["callbacks"][key], key)
    assert len(read_events(whole)) == 1
    assert read_events(broken) == read_events(whole)
    for rank in range(devices):
        assert read_steps(broken, rank) == read_steps(whole)


def fit_through(kills: list[Kill], command: list[str], folder: Path) -> None:
    """Train, and kill each start at its moment."""
    for kill in kills:
        ended = run(command, folder, kill)
        print(kill, ended)
        assert ended.seconds == ended.seconds, f"{kill} did not come"
        assert ended.status == -signal.SIGKILL
        check_files(folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training by one process."""
    folder = tmp_path_factory.mktemp("one")
    run_commands(folder, 1, [SHORT])
    return folder / SHORT


def test_a_fit_that_is_killed_in_its_recovery_ends_like_the_unbroken_one(tmp_path: Path, one: Path) -> None:
    batch_size = f"--data.batch_size={GLOBAL_BATCH}"
    command = [*FIT, *FITS[SHORT], batch_size, "--ckpt_path=auto", "--checkpoint.every_n_train_steps=7"]
    fit_through([Kill("written")], command, tmp_path)
    finish(command, tmp_path, here=True)
    compare(one, tmp_path / "runs", 1)


@slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["iat", "adaptive", "accumulated"])
def test_a_fit_that_is_killed_around_its_recovery_ends_like_the_unbroken_one(
    tmp_path: Path, name: str, devices: int
) -> None:
    command = [
        *FIT, *FITS[name], f"--data.batch_size={GLOBAL_BATCH // devices}", f"--trainer.devices={devices}",
        f"--trainer.strategy={'auto' if devices == 1 else 'ddp'}",
    ]  # fmt: skip
    assert run(command, tmp_path / "whole").status == 0
    whole = tmp_path / "whole/runs"
    command += ["--ckpt_path=auto", "--checkpoint.last_every_minutes=1e-9"]
    fit_through(choose_kills(whole), command, tmp_path / "broken")
    assert run(command, tmp_path / "broken").status == 0
    compare(whole, tmp_path / "broken/runs", devices)


def compare_processes(one: Path, two: Path) -> None:
    """Check that two processes have the events and the steps of one, and its weights within rounding."""
    ours, theirs = read_events(two), read_events(one)
    assert [(each["step"], each["kind"], each["eps"]) for each in ours] == [
        (each["step"], each["kind"], each["eps"]) for each in theirs
    ]
    for rank in range(2):
        assert read_steps(two, rank) == read_steps(one), f"rank {rank}"
    found, expected = read_run(two), read_run(one)
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(found.get(key), expected.get(key), rtol=1e-9, atol=1e-11)
    (key,) = (key for key in expected["callbacks"] if key.startswith("CollapseGuard"))
    for part in ("check", "checked"):  # those on held-out images
        assert found["callbacks"][key][part] == expected["callbacks"][key][part]


def test_two_processes_decide_like_one(one: Path, tmp_path: Path) -> None:
    run_in_processes("tests.cluster.recovery_commands", [str(tmp_path), 2, [SHORT]], 2)
    compare_processes(one, tmp_path / SHORT)


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in FITS if name != SHORT])
def test_two_processes_decide_like_one_in_other_trainings(tmp_path: Path, name: str) -> None:
    run_commands(tmp_path / "one", 1, [name])
    run_in_processes("tests.cluster.recovery_commands", [str(tmp_path / "two"), 2, [name]], 2)
    assert (len(read_events(tmp_path / "one" / name)) > 0) == ("no collapse" not in name)
    compare_processes(tmp_path / "one" / name, tmp_path / "two" / name)
