"""Processes of a SLURM job, and its return to the queue; the cluster's tests use a real SLURM."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from commands.interruption import interruptible, signals
from commands.launcher import adopt_launch
from commands.requeue import REQUEUED, requeue
from commands.slurm import SrunEnvironment, choose_environment

BATCH = {"JOB_ID": "7", "JOB_NAME": "rampart", "NTASKS": "8", "NNODES": "2", "PROCID": "0"}
STEP = {
    "STEP_ID": "0", "STEP_NUM_TASKS": "8", "STEP_NUM_NODES": "2", "STEP_TASKS_PER_NODE": "4(x2)",
    "STEP_NODELIST": "gpu[3-4]", "LOCALID": "0", "NODEID": "0",
}  # fmt: skip


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Variables of a batch script with eight tasks on two nodes."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what Lightning sets is removed after the test
        monkeypatch.delenv(name)
    return set_variables(monkeypatch, **BATCH)


def set_variables(patch: pytest.MonkeyPatch, **variables: str) -> pytest.MonkeyPatch:
    for name, value in variables.items():
        patch.setenv(f"SLURM_{name}", value)
    return patch


def adopt(subcommand: str = "fit", **given: Any) -> Namespace:
    own = {"devices": "auto", "num_nodes": 1, "strategy": "auto", "plugins": None, "accelerator": "auto"}
    trainer = Namespace(**own | given)
    adopt_launch(subcommand, trainer)
    return trainer


def test_devices_nodes_and_strategy_are_those_of_srun(job: Any) -> None:
    set_variables(job, **STEP)
    trainer = adopt()
    assert (trainer.devices, trainer.num_nodes, trainer.strategy) == (4, 2, "ddp")
    (environment,) = trainer.plugins
    assert isinstance(environment, SrunEnvironment)
    job.setattr("socket.getaddrinfo", lambda *_: [])
    assert (environment.main_address, environment.main_port, environment.world_size()) == ("gpu3", 15007, 8)
    job.setenv("MASTER_ADDR", "10.0.0.3")
    assert environment.main_address == "10.0.0.3"
    assert adopt("evaluate").devices == "auto"


def test_numbers_that_contradict_srun_are_refused(job: Any) -> None:
    set_variables(job, **STEP)
    with pytest.raises(ValueError, match=r"--trainer.devices 2 does not match the 2 x 4 processes .* that srun has"):
        adopt(devices=2)
    with pytest.raises(ValueError, match=r"start srun with --nodes 3 --ntasks-per-node 4$"):
        adopt(devices=4, num_nodes=3)


def test_nodes_with_different_numbers_of_tasks_are_refused(job: Any) -> None:
    set_variables(job, **STEP | {"STEP_TASKS_PER_NODE": "5,3"})
    with pytest.raises(ValueError, match=r"different numbers of tasks on 2 nodes \(5,3\): replace --ntasks by"):
        adopt()


def test_a_task_that_does_not_see_all_gpus_of_its_node_is_refused(job: Any) -> None:
    set_variables(job, **STEP).setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ValueError, match="this one sees 1: use --gpus-per-node 4 in place of --gpus-per-task"):
        adopt()
    assert adopt(accelerator="cpu").devices == 4
    job.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert adopt().devices == 4


def test_a_job_of_several_tasks_that_forgets_srun_is_refused(job: Any) -> None:
    with pytest.raises(ValueError, match="reserved 8 tasks for this job, but srun has not started this process"):
        adopt()
    with pytest.raises(ValueError, match="write srun before python"):
        adopt(devices=4, num_nodes=2)
    assert adopt(devices=1).num_nodes == 1
    assert adopt("evaluate").devices == "auto"


@pytest.mark.parametrize("variables", [{"JOB_NAME": "interactive"}, STEP | {"STEP_NUM_TASKS": "1", "NTASKS": "1"}])
def test_a_shell_of_salloc_or_srun_starts_its_own_processes(job: Any, variables: dict[str, str]) -> None:
    one_node = {"STEP_NUM_NODES": "1", "STEP_TASKS_PER_NODE": "1"} if "STEP_ID" in variables else {}
    set_variables(job, **variables | one_node)
    trainer = adopt(devices=2, strategy="ddp")
    assert (trainer.devices, trainer.num_nodes) == (2, 1)
    assert isinstance(trainer.plugins[0], LightningEnvironment)
    assert isinstance(choose_environment(), LightningEnvironment)


def test_a_given_environment_is_used(job: Any) -> None:
    set_variables(job, **STEP, NTASKS_PER_NODE="4")
    given = SLURMEnvironment(auto_requeue=False)
    assert adopt(plugins=given).plugins is given


@pytest.mark.parametrize(
    ("state", "signum", "resumable", "sentence"),
    [
        ("JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=2030-01-01T00:00:00", signal.SIGTERM, False, REQUEUED),
        ("JobState=RUNNING Requeue=0 Restarts=0 PreemptTime=2030-01-01T00:00:00", signal.SIGTERM, True, ""),
        ("JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=None", signal.SIGTERM, True, ""),
        ("JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=None", signal.SIGUSR1, True, REQUEUED),
        ("JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=None", signal.SIGUSR1, False, ""),
        ("JobState=COMPLETING Requeue=1 Restarts=0 PreemptTime=None", signal.SIGTERM, True, ""),
        ("JobState=COMPLETING Requeue=1 Restarts=0 PreemptTime=None", signal.SIGUSR1, True, ""),
        ("JobState=COMPLETING Requeue=1 Restarts=1 Comment=Restarts=0", signal.SIGTERM, True, REQUEUED),
    ],
)
def test_a_job_asks_to_be_requeued_only_if_it_would_be_over(
    job: Any, tmp_path: Path, state: str, signum: int, resumable: bool, sentence: str
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho "JobId=7 {state}"\n')
    program.chmod(0o755)
    job.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert requeue(signum, resumable) == sentence
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ("requeue 7" in asked) == (sentence != "" and "RUNNING" in state)


def test_without_slurm_or_its_controller_nothing_is_requeued(job: Any, tmp_path: Path) -> None:
    job.setenv("PATH", str(tmp_path))
    assert requeue(signal.SIGUSR1, True) == ""
    job.delenv("SLURM_JOB_ID")
    assert requeue(signal.SIGUSR1, True) == ""


def test_slurm_may_repeat_sigterm_while_the_run_is_saved(job: Any) -> None:
    job.setattr("os._exit", lambda status: pytest.fail(f"ended with {status}"))
    job.setattr("commands.interruption.REPEATED_SECONDS", 0.0)
    with interruptible():
        signals.deferred = True
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert signals.received == signal.SIGTERM


def test_a_late_sigusr1_does_not_fail_a_finished_run(job: Any) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with interruptible():
            pass
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
