"""Jobs of a real SLURM: preempted, stopped, requeued and killed ones end with the weights of a job left alone."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from commands.interruption import signals
from rampart.attacks import PGD
from rampart.files.weight_files import read_checkpoint
from tests.cluster.slurm import Slurm, skip_unless_slurm_can_run, wait_until
from tests.commands.test_chaos import COMMON
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EVENT_STEP, EPOCH_END = 9, 12
TRAINING = [
    *(option for option in COMMON if "Killer" not in option),
    "--config=configs/overlays/slurm.yaml",
    "--trainer.callbacks=tests.cluster.test_slurm.Signpost",
]


class Signpost(Callback):
    """Train slowly in the first start, write each rank's process id to a file at one step, and wait for a signal."""

    _start = -1

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        file = Path(os.environ["SIGNS"]) / str(trainer.global_rank)
        if self._start < 0:
            self._start = trainer.global_step
            if file.exists():
                file.with_name("resumed").write_text(str(self._start))
        if self._start == 0 and "ALONE" not in os.environ:
            time.sleep(0.4)  # so that the processes agree every second or third batch
            if trainer.global_step == EVENT_STEP:
                file.write_text(str(os.getpid()))
                wait_until(lambda: signals.received != 0, 120, "a signal")


class CountedPGD(PGD):
    """PGD that writes a file to SIGNS per call, and starts only when the given number of processes does."""

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        folder = Path(os.environ["SIGNS"])
        (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        wait_until(lambda: len(count_calls(folder)) >= int(os.environ["TASKS"]), 120, "the other task")
        time.sleep(0.2)
        return super().__call__(*arguments, **options)


def count_calls(folder: Path) -> dict[str, int]:
    """Return the number of calls of each process."""
    processes = [path.name.split("-")[0] for path in folder.iterdir()]
    return {process: processes.count(process) for process in processes}


class Jobs:
    """Jobs of one test, with their runs and output in one folder."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.signs, self.runs, self.output = slurm, folder / "signs", folder / "the runs", folder / "output"
        self.signs.mkdir()

    def submit(
        self, *command: str, options: tuple[str, ...] = ("--nodes=2",), tasks: int = 1, alone: bool = False
    ) -> str:
        """Submit the launcher with a command, and return the job's number."""
        settings = {"SIGNS": str(self.signs), "TASKS": str(tasks), "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
        if alone:
            settings["ALONE"] = "1"
        settings["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        launcher = [*options, "--partition=low", f"--output={self.output}", "scripts/slurm.sbatch"]
        return self.slurm.run("sbatch", "--parsable", *launcher, *command, f"--runs_dir={self.runs}", **settings)

    def train(self, *more: str, until_event: bool = True) -> str:
        """Submit a training job, and wait until it has been trained to EVENT_STEP, or is complete."""
        job = self.submit(*TRAINING, *more, alone=not until_event)
        if until_event:
            wait_until(lambda: (self.signs / "1").exists() and (self.signs / "0").exists(), 240, f"step {EVENT_STEP}")
        else:
            self.slurm.wait_for(job, "COMPLETED")
        return job

    def assert_resumed(self, weights: dict[str, Tensor], first: int = EVENT_STEP) -> None:
        """Check that the run was resumed within an epoch, in its folder, and ended with these weights."""
        assert first <= int((self.signs / "resumed").read_text()) < EPOCH_END
        assert_equal(read_weights(self.runs), weights)
        assert [path.name for path in (self.runs / "run").glob("fit-*")] == ["fit-0"]


def read_weights(runs: Path) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(max((runs / "run").glob("fit-*")) / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 48
    return checkpoint["state_dict"]  # type: ignore[no-any-return]


def assert_equal(weights: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    skip_unless_slurm_can_run()
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def jobs(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.chdir(ROOT)
    return Jobs(slurm, tmp_path)


@pytest.fixture(scope="module")
def alone(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the runs of a job that is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        jobs = Jobs(slurm, tmp_path_factory.mktemp("alone"))
        jobs.train(until_event=False)
        yield jobs.runs


def test_a_preempted_job_is_requeued_and_ends_with_the_weights_of_a_job_left_alone(jobs: Jobs, alone: Path) -> None:
    slurm, job = jobs.slurm, jobs.train()
    whole = ("--nodes=2", "--ntasks-per-node=2", "--partition=high", "--output=/dev/null")
    urgent = slurm.run("sbatch", "--parsable", *whole, "--wrap=sleep 1")
    slurm.wait_for(urgent, "COMPLETED")
    slurm.wait_for(job, "COMPLETED")
    printed = jobs.output.read_text()
    assert "interrupted by SIGTERM: saved" in printed
    assert "the job is in the queue again and resumes automatically" in printed
    assert slurm.read_job(job)["Restarts"] == "1"
    jobs.assert_resumed(read_weights(alone))


def test_a_job_near_its_time_limit_saves_returns_to_the_queue_and_resumes(jobs: Jobs, alone: Path) -> None:
    slurm, job = jobs.slurm, jobs.train()
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # --signal=USR1@120
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    slurm.wait_for(job, "COMPLETED")
    assert "interrupted by SIGUSR1: saved" in jobs.output.read_text()
    assert slurm.read_job(job)["Restarts"] == "1"
    jobs.assert_resumed(read_weights(alone))


def test_a_job_that_is_requeued_from_outside_resumes(jobs: Jobs, alone: Path) -> None:
    slurm, job = jobs.slurm, jobs.train()
    slurm.run("scontrol", "requeue", job)
    slurm.wait_for(job, "COMPLETED")
    assert "the job is in the queue again" in jobs.output.read_text()
    assert slurm.read_job(job)["Restarts"] == "1"
    jobs.assert_resumed(read_weights(alone))


def test_a_cancelled_job_saves_and_is_over(jobs: Jobs) -> None:
    job = jobs.train()
    jobs.slurm.run("scancel", job)
    jobs.slurm.wait_for(job, "CANCELLED")
    assert "interrupted by SIGTERM: saved" in jobs.output.read_text()
    assert "; resume with: the same command" in jobs.output.read_text()
    assert jobs.slurm.read_job(job)["Restarts"] == "0"
    assert read_checkpoint(jobs.runs / "run/fit-0/checkpoints/last.ckpt")["global_step"] >= EVENT_STEP


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_task_ends_the_job_and_the_same_command_resumes_with_auto(jobs: Jobs, alone: Path, rank: int) -> None:
    job, killed = jobs.train(), time.monotonic()
    os.kill(int((jobs.signs / str(rank)).read_text()), signal.SIGKILL)
    jobs.slurm.wait_for(job, "FAILED", 60 - (time.monotonic() - killed))
    printed = jobs.output.read_text()
    assert f"task {rank}: Killed" in printed
    assert "Traceback" not in printed
    jobs.train("--ckpt_path=auto", until_event=False)
    jobs.assert_resumed(read_weights(alone), first=6)


def test_an_array_of_evaluations_computes_each_batch_once(jobs: Jobs, alone: Path, tmp_path: Path) -> None:
    attack = "{class_path: tests.cluster.test_slurm.CountedPGD, init_args: {steps: 1}}"
    command = [
        "evaluate", f"--config={alone}/run/fit-0/config.yaml", f"--ckpt_path={alone}/run/fit-0/checkpoints/last.ckpt",
        "--config=configs/overlays/cpu.yaml", "--num_images=60", "--batch_size=10", f"--attacks=[{attack}]",
        "--eps=[0.01, 0.02]", "--certify=false", "--trainer.callbacks=[]",
    ]  # fmt: skip
    totals, reports, tables = [], [], []
    for name, options, tasks in (("array", ("--array=0-1",), 2), ("single", (), 1)):
        folder = tmp_path / name
        folder.mkdir()
        both = Jobs(jobs.slurm, folder)
        job = both.submit(*command, options=options, tasks=tasks)
        numbers = [f"{job}_{number}" for number in range(tasks)] if tasks > 1 else [job]
        for number in numbers:
            jobs.slurm.wait_for(number, "COMPLETED")
        calls = count_calls(both.signs)
        assert len(calls) == tasks
        assert min(calls.values()) > 1
        totals.append(sum(calls.values()) - tasks)  # each process first tries the attack on a few images
        pages = list((both.runs / "run").glob("evaluate-*/report.json"))
        assert len(pages) == tasks
        reports += [json.loads(page.read_text()) for page in pages]
        tables += [(page.parent / "per_image.csv").read_text() for page in pages]
    assert totals[0] == totals[1] > 0
    for report, table in zip(reports, tables, strict=True):
        assert (report["clean"], report["robust"], table) == (reports[0]["clean"], reports[0]["robust"], tables[0])
