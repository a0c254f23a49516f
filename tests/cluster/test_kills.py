"""Chaos: real processes are killed by SIGKILL and started again by the same command, until they have finished."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import main
from rampart.files.weight_files import read_checkpoint
from rampart.networks import MNISTCNN
from tests.cluster.kills import MOMENTS, TIME_VARIABLE, VARIABLE
from tests.commands.test_chaos import COMMON, assert_equal, read_best, read_last
from tests.commands.test_evaluate import arguments, without_timings
from tests.conftest import ROOT

SEED = int(os.environ.get("RAMPART_CHAOS_SEED", "0"))
CALLBACK = "--trainer.callbacks=tests.cluster.kills.KillCallback"
FIT = [
    *(option for option in COMMON if not option.startswith(("--trainer.callbacks", "--test_after", "--trainer.max"))),
    CALLBACK, "--checkpoint.every_n_train_steps=4", "--checkpoint.last_every_minutes=1e-9", "--ckpt_path=auto",
    "--model.test_attacks=[{eps: 0.1, attack: {class_path: rampart.attacks.PGD, init_args: {steps: 1}}}]",
]  # fmt: skip
ONCE = ("start", "group", "setup", "fit", "load")
"""Moments that come once in a run."""

WRITERS = dict.fromkeys(("fsync", "replace", "replaced"), "0")
"""Ranks that reach a moment, where not all do."""

PAIR = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@dataclass
class Kill:
    """A moment at which processes are killed.

    Attributes:
        moment: One of MOMENTS, or ``imports``: the group is killed ``number`` tenths of a second after the start.
        number: Number of the moment, from 1.
        rank: Rank to be killed, or ``all`` processes.
    """

    moment: str
    number: int = 1
    rank: str = "all"


@dataclass
class Ended:
    """End of a command.

    Attributes:
        status: Exit status.
        errors: Error lines on stderr.
        seconds: Seconds from the kill until all processes have ended; NaN without one.
        traces: Lines of Python's or torch's traces on stderr.
    """

    status: int
    errors: list[str] = field(default_factory=list)
    seconds: float = float("nan")
    traces: list[str] = field(default_factory=list)


def run(command: list[str], folder: Path, kill: Kill | None = None, limit: float = 240.0) -> Ended:
    """Run a command in its own process group, and wait until all of its processes have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "killed"
    stamp.unlink(missing_ok=True)
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), TIME_VARIABLE: str(stamp)}
    if kill is not None and kill.moment != "imports":
        settings[VARIABLE] = f"{kill.rank} {kill.moment} {kill.number}"
    process = subprocess.Popen(
        [sys.executable, "cli.py", *command, f"--runs_dir={folder / 'runs'}"], cwd=ROOT, env=os.environ | settings,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    if kill is not None and kill.moment == "imports":
        time.sleep(kill.number / 10)
        stamp.write_text(str(time.time()))
        os.killpg(process.pid, signal.SIGKILL)
    try:
        _, printed = process.communicate(timeout=limit)  # stderr ends when the last process has ended
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = printed.splitlines()
    return Ended(
        process.returncode,
        [line for line in lines if line.startswith("error:")],
        time.time() - float(stamp.read_text()) if stamp.exists() else float("nan"),
        [line for line in lines if "Traceback" in line or "gloo/" in line or "TCPStore" in line],
    )


def finish(command: list[str], folder: Path, here: bool) -> None:
    """Run a command to its end, in this process if ``here``, which takes less time."""
    if here:
        main([*command, f"--runs_dir={folder / 'runs'}"])
    else:
        assert run(command, folder).status == 0


def check_files(folder: Path) -> None:
    """Read every checkpoint: none is broken at any time."""
    for file in folder.rglob("*.ckpt"):
        read_checkpoint(file)


def choose_kills(number: int, devices: int) -> list[Kill]:
    """Return random moments of each kind, in random order, among them some by the clock."""
    chance = random.Random(f"{SEED} {devices}")  # noqa: S311
    kinds = [each for each in (*MOMENTS, "imports") if each != "test" and (devices > 1 or each != "group")]
    chosen = [kinds[index % len(kinds)] for index in range(number)]
    chance.shuffle(chosen)
    most = {"imports": 30, "clock": 40, "validation": 3, "epoch": 2} | dict.fromkeys(ONCE, 1)
    return [
        Kill(
            moment,
            chance.randint(1, most.get(moment, 6)),
            "all" if devices == 1 or moment == "imports" else chance.choice(["all", *WRITERS.get(moment, "01")]),
        )
        for moment in chosen
    ]


def check_end(ended: Ended, kill: Kill) -> None:
    """All processes have ended soon, with one line if one of them was killed."""
    assert ended.status != 0
    assert not ended.traces
    assert ended.seconds < 60
    assert len(ended.errors) == (kill.rank != "all" and (kill.moment, kill.rank) != ("start", "0"))


def fit_through(kills: list[Kill], folder: Path, options: list[str], here: bool = False) -> None:
    """Train once without and once with kills, and compare the results."""
    command = [*FIT, *options]
    finish(command, folder / "whole", here)
    done = 0
    for kill in kills:
        ended = run(command, folder / "broken", kill)
        print(kill, ended)
        check_files(folder / "broken")
        if ended.seconds == ended.seconds:
            check_end(ended, kill)
            done += 1
    assert done >= len(kills) - 3  # a moment may not come in what was left of the training
    finish(command, folder / "broken", here)
    one, other = (read_last(folder / name / "runs") for name in ("whole", "broken"))
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(one[key], other[key], key)
    assert read_best(one) == read_best(other)
    left = [file.name for file in (folder / "broken").rglob("*") if file.name.endswith((".tmp", ".link"))]
    assert left == []


def options(epochs: int) -> list[str]:
    return [f"--trainer.max_epochs={epochs}", f"--ramp.phases=[{{epochs: {epochs}, start_eps: 0, end_eps: 0.4}}]"]


def test_a_fit_that_is_killed_in_a_save_ends_like_the_unbroken_one(tmp_path: Path) -> None:
    fit_through([Kill("fsync", 4)], tmp_path, options(2), here=True)


def test_the_death_of_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    ended = run([*FIT, *PAIR, *options(2)], tmp_path, Kill("validation", 3, "1"))
    check_end(ended, Kill("validation", 3, "1"))
    assert ended.errors[0].startswith("error: process 1 of this run was killed by SIGKILL")
    assert ended.seconds < 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_fit_that_is_killed_at_20_moments_ends_like_the_unbroken_one(tmp_path: Path, devices: int) -> None:
    fit_through([*choose_kills(19, devices), Kill("test", 2)], tmp_path, options(20) + (PAIR if devices == 2 else []))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("moment", "rank"), [(moment, rank) for moment in MOMENTS for rank in WRITERS.get(moment, "01")]
)
def test_the_death_of_a_process_at_any_moment_ends_both(tmp_path: Path, moment: str, rank: str) -> None:
    if moment == "load":
        assert run([*FIT, *PAIR, *options(2)], tmp_path, Kill("step", 9)).status != 0
    kill = Kill(moment, 1 if moment in ONCE else 2, rank)
    ended = run([*FIT, *PAIR, *options(2)], tmp_path, kill)
    print(kill, ended)
    check_end(ended, kill)


def evaluate_through(kills: list[Kill], folder: Path, here: bool = False) -> None:
    """Evaluate once without and once with kills, and compare the results."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = folder / "weights.pth"
    torch.save(MNISTCNN().state_dict(), weights)
    given = arguments(weights, folder, "--preset=quick", CALLBACK)
    command = [each for each in given if not each.startswith("--runs_dir")] + ["--batch_size=5"]
    finish(command, folder / "whole", here)
    for kill in kills:
        ended = run(command, folder / "broken", kill)
        print(kill, ended)
        assert ended.status == -signal.SIGKILL
        assert ended.errors == []
    finish(command, folder / "broken", here)
    found: list[tuple[str, dict[str, Any]]] = []
    for name in ("whole", "broken"):
        (report,) = (folder / name).rglob("report.json")
        found.append(((report.parent / "per_image.csv").read_text(), without_timings(report)))
        # The folder of a killed start may keep an unfinished file, since no later start writes there.
        (searches,) = (folder / name).rglob("searches")
        assert not [file for kept in (report.parent, searches) for file in kept.rglob("*.tmp")]
    assert found[0] == found[1]


def test_an_evaluation_that_is_killed_reports_like_the_unbroken_one(tmp_path: Path) -> None:
    evaluate_through([Kill("fsync", 3)], tmp_path, here=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_an_evaluation_that_is_killed_ten_times_reports_like_the_unbroken_one(tmp_path: Path) -> None:
    kills = [Kill("start"), Kill("imports", 30), Kill("imports", 62), Kill("imports", 80)]
    # The first file of a start is its config, later ones are results of batches.
    kills += [Kill(moment, number) for number in (1, 3) for moment in ("fsync", "replace", "replaced")]
    evaluate_through(kills, tmp_path)
