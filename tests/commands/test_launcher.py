"""Trainer settings from the processes that torchrun has started."""

from typing import Any

import pytest
from jsonargparse import Namespace

from commands.launcher import adopt_launch, start_words
from commands.messages import command_line


def adopt(subcommand: str = "fit", **given: Any) -> Namespace:
    trainer = Namespace(**{"devices": "auto", "num_nodes": 1, "strategy": "auto", "plugins": None} | given)
    adopt_launch(subcommand, trainer)
    del trainer.plugins
    return trainer


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Variables of torchrun with two nodes of four processes."""
    sizes = {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for name, value in (sizes | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_a_launcher_nothing_changes() -> None:
    assert adopt() == Namespace(devices="auto", num_nodes=1, strategy="auto")


def test_devices_nodes_and_strategy_are_those_of_torchrun(torchrun: Any) -> None:
    whole = Namespace(devices=4, num_nodes=2, strategy="ddp")
    assert adopt() == adopt(devices=4) == adopt(num_nodes=2) == adopt(devices=-1, strategy="ddp") == whole
    assert adopt(devices=[0, 1, 2, 3]).num_nodes == adopt(devices="0,1,2,3").num_nodes == 2
    assert adopt(strategy="ddp_find_unused_parameters_true").strategy == "ddp_find_unused_parameters_true"
    assert adopt("evaluate") == Namespace(devices="auto", num_nodes=1, strategy="auto")


def test_one_process_needs_no_strategy(torchrun: Any) -> None:
    for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        torchrun.setenv(name, "1")
    assert adopt() == Namespace(devices=1, num_nodes=1, strategy="auto")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"devices": 2},
            "--trainer.devices 2 does not match the 2 x 4 processes (nodes x processes per node) that torchrun has "
            "started: leave it out, or start torchrun with --nnodes 1 --nproc-per-node 2",
        ),
        (
            {"devices": 4, "num_nodes": 3},
            "--trainer.devices 4 --trainer.num_nodes 3 does not match the 2 x 4 processes (nodes x processes per node) "
            "that torchrun has started: leave it out, or start torchrun with --nnodes 3 --nproc-per-node 4",
        ),
    ],
)
def test_numbers_that_contradict_torchrun_are_refused(torchrun: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="does not match") as error:
        adopt(**given)
    assert str(error.value) == message


def test_nodes_with_different_numbers_of_processes_are_refused(torchrun: Any) -> None:
    torchrun.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="6 processes on 2 nodes, 4 of them here: give every node the same"):
        adopt()


def test_the_command_to_resume_starts_as_many_processes(torchrun: Any) -> None:
    assert command_line("fit", start=start_words()) == "torchrun --standalone --nproc-per-node 4 cli.py fit"
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert command_line("fit", start=start_words()) == command_line("fit")
