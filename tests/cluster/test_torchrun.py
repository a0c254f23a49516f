"""Runs that torchrun starts, on one machine and on two nodes: one folder, equal weights, restarts and lost nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from datamodules.in_memory import ImageSet, InMemoryDataModule
from rampart.files.weight_files import read_checkpoint
from tests.cluster.nodes import ADDRESSES, Nodes, is_running, two_nodes
from tests.commands.test_chaos import COMMON, assert_equal
from tests.conftest import ROOT

SECONDS = 240
"""Longest duration of a run; alone on two cores it takes a tenth."""

LONG = ["--trainer.max_epochs=100000", "--ramp.phases=[{epochs: 100000, end_eps: 0.1}]"]
TRAINING = ["fit", "--data=tests.cluster.test_torchrun.Few"]
TRAINING += [each for each in COMMON[1:] if not each.startswith("--data=")]


class Few(InMemoryDataModule):
    """Random images.

    Args:
        log: File to which each preparation of the data adds the node's number.
    """

    def __init__(self, log: str | None = None, batch_size: int = 8, val_size: int = 16, max_shift: int = 1) -> None:
        super().__init__(batch_size, eval_batch_size=10, val_size=val_size, max_shift=max_shift)
        self.log = log

    def prepare_data(self) -> None:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(os.environ["GROUP_RANK"])

    def read_train(self) -> ImageSet:
        return _random_images(200)

    def read_test(self) -> ImageSet:
        return _random_images(60)


def _random_images(number: int) -> ImageSet:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(number) % 10)


class Dying(Callback):
    """Kill the process of one rank by SIGKILL before a step, once.

    Args:
        rank: Rank of the process.
        step: The step.
        mark: File that is written before, so that a restarted process lives on.
    """

    def __init__(self, rank: int, step: int, mark: str) -> None:
        self.rank, self.step, self.mark = rank, step, Path(mark)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def dying(folder: Path, rank: int) -> str:
    """Return the option that kills a rank in the third epoch."""
    settings = f"{{rank: {rank}, step: 15, mark: {folder / 'mark'}}}"
    return f"--trainer.callbacks={{class_path: tests.cluster.test_torchrun.Dying, init_args: {settings}}}"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, timeout=SECONDS,
    )  # fmt: skip


def torchrun(*arguments: str, options: Sequence[str] = ("--nproc-per-node=2",)) -> subprocess.CompletedProcess[str]:
    """Run torchrun on this machine, with any free port."""
    here = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return run("-m", "torch.distributed.run", *here, *options, "cli.py", *arguments)


def weights(folder: Path, number: int = 0) -> Any:
    """Return the weights at the end of a run; there are no other runs."""
    runs = sorted(each.name for each in (folder / "run").iterdir() if each.name.startswith("fit"))
    assert runs == [f"fit-{each}" for each in range(number + 1)]
    return read_checkpoint(folder / f"run/fit-{number}/checkpoints/last.ckpt")["state_dict"]


def wait(found: Callable[[], bool], seconds: float = SECONDS) -> float:
    """Wait until something is found, and return the seconds that it took."""
    start = time.monotonic()
    while not found():
        assert time.monotonic() - start < seconds
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights that two processes on one machine train, started by Lightning."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = run("cli.py", *TRAINING, f"--runs_dir={folder}", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    return weights(folder)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with two_nodes(tmp_path) as nodes:
        yield nodes


def finish(nodes: Nodes, options: list[str], arguments: list[str]) -> str:
    """Run torchrun on both nodes until it ends well, and return what the first has printed.

    Options may contain the node's number as ``{node}``.
    """
    agents = [nodes.torchrun(node, [each.format(node=node) for each in options], arguments) for node in range(2)]
    for node, agent in enumerate(agents):
        assert agent.wait(SECONDS) == 0, nodes.read(node)
    return nodes.read(0)


def test_a_process_that_torchrun_restarts_resumes_in_the_folder_of_its_run(tmp_path: Path) -> None:
    done = torchrun(
        *TRAINING, f"--runs_dir={tmp_path}", dying(tmp_path, 0), "--trainer.max_epochs=3",
        "--ramp.phases=[{epochs: 3, end_eps: 0.1}]", options=("--max-restarts=1",),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights(tmp_path)
    assert "max_epochs=3` reached" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("identity", [(), ("--rdzv-id=experiment",)])
def test_restarted_processes_end_bit_equal_to_the_unbroken_run(tmp_path: Path, unbroken: Any, identity: Any) -> None:
    options = ("--nproc-per-node=2", "--max-restarts=3", *identity)
    for number in range(2):  # a later launch starts a new run, also with the same identity
        (tmp_path / "mark").unlink(missing_ok=True)
        done = torchrun(*TRAINING, f"--runs_dir={tmp_path}", dying(tmp_path, number), options=options)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "mark").exists()
        assert_equal(weights(tmp_path, number), unbroken)


@pytest.mark.slow
def test_two_nodes_train_test_and_predict_once_what_two_processes_of_a_machine_do(
    tmp_path: Path, nodes: Nodes, unbroken: Any
) -> None:
    training = [each for each in TRAINING if not each.startswith(("--test_after_fit", "--trainer.logger"))]
    training.append(f"--data.log={tmp_path / 'prepared'}")
    printed = finish(nodes, [], [*training, f"--runs_dir={tmp_path}"])
    assert_equal(weights(tmp_path), unbroken)
    assert sorted((tmp_path / "prepared").read_text()) == ["0", "0", "1", "1"]  # before fit and before test
    folder = tmp_path / "run/fit-0"
    assert json.loads((folder / "test.json").read_text())["images"] == 60
    assert len({file.name.split(".")[4] for file in folder.glob("events.*")}) == 1  # all of one process
    assert printed.count("Checkpoint: ") == 1
    assert "Checkpoint: " not in nodes.read(1)
    common = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    finish(nodes, [], ["predict", *common])
    (file,) = tmp_path.glob("run/predict-*/predictions.csv")
    assert sorted(int(line.split(",")[0]) for line in file.read_text().splitlines()[1:]) == list(range(60))
    finish(nodes, [], ["evaluate", *common, "--preset=quick", "--batch_size=10"])
    (report,) = tmp_path.glob("run/evaluate-*/report.json")
    assert json.loads(report.read_text())["images"] == 60


@pytest.mark.slow
def test_two_nodes_of_two_processes_with_a_static_rendezvous_train_what_four_processes_do(
    tmp_path: Path, nodes: Nodes
) -> None:
    done = torchrun(*TRAINING, f"--runs_dir={tmp_path / 'one'}", options=("--nproc-per-node=4",))
    assert done.returncode == 0, done.stderr
    static = ["--nproc-per-node=2", "--node-rank={node}", f"--master-addr={ADDRESSES[0]}", "--master-port=29555"]
    finish(nodes, static, [*TRAINING, f"--runs_dir={tmp_path}"])
    assert_equal(weights(tmp_path), weights(tmp_path / "one"))


@pytest.mark.slow
def test_two_nodes_restart_after_a_killed_process_and_end_bit_equal(
    tmp_path: Path, nodes: Nodes, unbroken: Any
) -> None:
    finish(nodes, ["--max-restarts=3"], [*TRAINING, f"--runs_dir={tmp_path}", dying(tmp_path, 1)])
    assert (tmp_path / "mark").exists()
    assert_equal(weights(tmp_path), unbroken)


def start_long_run(nodes: Nodes, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start a training that does not end by itself, and wait for its first checkpoint."""
    agents = [nodes.torchrun(node, [], [*TRAINING, *LONG, f"--runs_dir={folder}"]) for node in range(2)]
    wait((folder / "run/fit-0/checkpoints/last.ckpt").exists)
    return agents


@pytest.mark.slow
def test_sigterm_to_torchrun_on_one_node_saves_and_ends_both(tmp_path: Path, nodes: Nodes) -> None:
    agents = start_long_run(nodes, tmp_path)
    agents[1].send_signal(signal.SIGTERM)
    for agent in agents:
        assert agent.wait(60) != 0
    assert (nodes.read(0) + nodes.read(1)).count("interrupted by SIGTERM: saved") == 1
    weights(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "node"), [("process", 0), ("torchrun", 1), ("node", 1), ("cable", 0)])
def test_all_processes_end_after_a_failure_on_one_node(tmp_path: Path, nodes: Nodes, what: str, node: int) -> None:
    agents = start_long_run(nodes, tmp_path)
    workers = nodes.workers(0) + nodes.workers(1)
    if what == "process":
        os.kill(nodes.workers(node)[0], signal.SIGKILL)
    elif what == "torchrun":
        agents[node].kill()
    elif what == "node":
        nodes.kill(node)
    else:
        nodes.unplug()
    took = wait(lambda: not any(map(is_running, workers)), 120)
    print(f"{what} {node}: {took:.1f} s")
    if what == "cable":
        assert all(nodes.read(each).count("error: no sign of life from node") == 1 for each in range(2))
    weights(tmp_path)
