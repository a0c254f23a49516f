"""Signals: an interrupted run saves, prints how to resume it, and ends with a status other than 0."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback

from cli import main
from commands.interruption import Interrupted, interruptible, signals
from rampart.files.weight_files import read_checkpoint
from tests.commands.test_chaos import COMMON, assert_equal, read_last
from tests.conftest import ROOT

EVALUATION = [option for option in COMMON[1:] if not option.startswith("--test_after_fit")]


class Signaller(Callback):
    """Send this process a signal at the n-th call of a hook."""

    signum, hook, after = signal.SIGTERM, "", 0

    def __init__(self) -> None:
        self.count = 0

    def _moment(self, hook: str) -> None:
        self.count += hook == Signaller.hook
        if hook == Signaller.hook and self.count == Signaller.after:
            os.kill(os.getpid(), Signaller.signum)

    def on_train_batch_start(self, *_: Any) -> None:
        self._moment("batch")

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        self._moment("validation" if not trainer.sanity_checking else "")

    def on_train_epoch_end(self, *_: Any) -> None:
        self._moment("epoch")

    def on_train_end(self, *_: Any) -> None:
        self._moment("end")

    def on_test_batch_start(self, *_: Any) -> None:
        self._moment("test")


SIGNALLER = "--trainer.callbacks=tests.commands.test_interruption.Signaller"


def interrupt(capsys: Any, signum: int, hook: str, after: int, *arguments: str) -> str:
    """Run a command that gets a signal, and return the last line of stderr."""
    Signaller.signum, Signaller.hook, Signaller.after = signal.Signals(signum), hook, after
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        main([*arguments, SIGNALLER])
    assert status.value.code == 128 + signum
    Signaller.after = 0
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "interrupted by" in line]) == 1
    assert "Traceback" not in "".join(lines)
    return str(lines[-1])


def resume(line: str) -> None:
    """Run the printed command."""
    command = shlex.split(line.split("resume with: ")[1])
    assert command[:2] == ["python", "cli.py"]
    main(command[2:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    main([*COMMON, f"--runs_dir={folder}", "--trainer.accumulate_grad_batches=2"])
    return read_last(folder)


@pytest.mark.parametrize(
    ("signum", "hook", "after"),
    [
        (signal.SIGTERM, "batch", 9),
        (signal.SIGINT, "batch", 20),
        (signal.SIGTERM, "validation", 3),
        (signal.SIGINT, "epoch", 3),
        (signal.SIGTERM, "end", 1),
    ],
)
def test_the_printed_command_resumes_an_interrupted_fit_bit_equal_to_the_uninterrupted_run(
    whole: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any, signum: int, hook: str, after: int
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    runs = tmp_path / "a place's runs"
    line = interrupt(capsys, signum, hook, after, *COMMON, f"--runs_dir={runs}", "--trainer.accumulate_grad_batches=2")
    assert ("SIGTERM" if signum == signal.SIGTERM else "Ctrl-C") in line
    assert "saved" in line
    assert "last.ckpt" in line
    saved = read_checkpoint(runs / "run/fit-0/checkpoints/last.ckpt")
    expected = {"batch": (after + 1) // 2, "validation": 9, "epoch": 9, "end": 24}[hook]
    assert saved["global_step"] == expected
    resume(line)
    end = read_last(runs) if hook != "end" else saved
    for key in ("global_step", "state_dict", "optimizer_states"):
        assert_equal(end[key], whole[key], key)


def test_the_command_to_resume_is_printed_when_training_starts(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    main([*COMMON, f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1}]"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "resume with" in line)
    resume(line)


def test_without_checkpoints_the_message_says_that_nothing_was_saved(tmp_path: Path, capsys: Any) -> None:
    line = interrupt(
        capsys, signal.SIGTERM, "batch", 2, *COMMON, f"--runs_dir={tmp_path}", "--trainer.enable_checkpointing=false"
    )
    assert "nothing was saved, because trainer.enable_checkpointing is false" in line


def test_an_interrupted_test_ends_in_one_line(tmp_path: Path, capsys: Any) -> None:
    line = interrupt(capsys, signal.SIGINT, "test", 1, "test", *EVALUATION, f"--runs_dir={tmp_path}")
    assert line == "interrupted by Ctrl-C: nothing more was written; run the command again"


def test_a_repeated_signal_ends_the_process_at_once(monkeypatch: Any) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("commands.interruption.REPEATED_SECONDS", 0.0)
    with interruptible():
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert ended == []  # a signal of another kind is ignored: schedulers send several
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert ended == [128 + signal.SIGTERM]


def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "cli.py", *arguments], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | settings,
    )  # fmt: skip


def _catches(process: int, signum: int) -> bool:
    caught = Path(f"/proc/{process}/status").read_text().split("SigCgt:")[1].split()[0]
    return bool(int(caught, 16) >> (signum - 1) & 1)


def test_ctrl_c_during_the_imports_ends_in_one_line() -> None:
    process = start("fit", "--config", "configs/quickstart.yaml")
    while not _catches(process.pid, signal.SIGTERM):  # then it has begun, and imports its libraries
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert printed == "interrupted by Ctrl-C: nothing more was written; run the command again\n"


def test_sigterm_to_one_of_two_processes_saves_the_run_and_ends_both(tmp_path: Path) -> None:
    process = start(
        *COMMON, f"--runs_dir={tmp_path}", "--trainer.devices=2", "--trainer.strategy=ddp",
        "--trainer.max_epochs=100000", "--ramp.phases=[{epochs: 100000, end_eps: 0.1}]",
    )  # fmt: skip
    last = tmp_path / "run/fit-0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert len([line for line in printed.splitlines() if "interrupted by SIGTERM: saved" in line]) == 1
    assert "Traceback" not in printed
    assert not Path(f"/proc/{child}").exists()
    read_checkpoint(last)


def test_a_job_that_slurm_restarts_resumes_automatically(
    whole: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    stub = tmp_path / "bin/scontrol"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    for name, value in {
        "JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1", "PROCID": "0",
        "LOCALID": "0", "NODEID": "0", "JOB_NODELIST": "localhost",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    command = [*COMMON, f"--runs_dir={tmp_path}", "--trainer.accumulate_grad_batches=2"]
    line = interrupt(capsys, signal.SIGUSR1, "batch", 15, *command)
    assert line.endswith("the job is in the queue again and resumes automatically")
    assert (tmp_path / "asked").read_text() == "--oneliner show job 7\nrequeue 7\n"
    assert read_last(tmp_path)["global_step"] == 8
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    interrupt(capsys, signal.SIGTERM, "batch", 10, *command)
    main([*command, SIGNALLER])
    assert [folder.name for folder in (tmp_path / "run").iterdir()] == ["fit-0"]
    for key in ("global_step", "state_dict", "optimizer_states"):
        assert_equal(read_last(tmp_path)[key], whole[key], key)
    best = [key for key in read_last(tmp_path)["callbacks"] if key.startswith("RunCheckpoint")]
    state, other = (each["callbacks"][best[0]] for each in (read_last(tmp_path), whole))
    assert state["best_model_score"] == other["best_model_score"]
    # Another job starts from scratch.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    interrupt(capsys, signal.SIGTERM, "batch", 1, *command)
    assert read_last(tmp_path)["global_step"] == 1


def test_a_closed_terminal_interrupts_like_other_signals() -> None:
    with interruptible(), pytest.raises(Interrupted, match="interrupted by SIGHUP"):
        signal.raise_signal(signal.SIGHUP)
    assert signals.received == 0  # for a later run in this process
