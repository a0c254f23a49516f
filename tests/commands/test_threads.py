"""Threads of processes that share cores."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from commands.threads import Place, ThreadsCallback, count_threads, find_place


def place(machine: str, *cores: int) -> Place:
    return machine, frozenset(cores)


def test_cores_are_divided_among_the_processes_that_may_use_them() -> None:
    both, four = place("a", 0, 1), place("a", 0, 1, 2, 3)
    assert count_threads(both, [both, both]) == 1
    assert count_threads(four, [four, four]) == 2
    assert count_threads(four, [four] * 3) == 1
    assert count_threads(place("a", *range(9)), [place("a", *range(9))] * 3) == 3
    assert count_threads(both, [both] * 3) == 1  # more processes than cores
    assert count_threads(four, [four, place("b", 0, 1, 2, 3)]) == 4  # another machine
    assert count_threads(both, [both, place("a", 2, 3)]) == 2  # bound to their own cores
    assert count_threads(four, [four, place("a", 0, 1)]) == 3


@pytest.mark.parametrize(("given", "threads"), [(None, 1), ("3", 3)])
def test_a_process_takes_its_part_unless_the_user_gives_a_number(
    given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(everyone: list[Any], mine: Any) -> None:
        everyone[:] = [mine] * len(everyone)

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before, processes = torch.get_num_threads(), len(find_place()[1])
    trainer: Any = SimpleNamespace(world_size=max(2, processes))
    callback = ThreadsCallback()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # as Lightning does, between the two
    try:
        torch.set_num_threads(3)
        callback.setup(trainer, trainer, "fit")
        assert torch.get_num_threads() == threads
        trainer.world_size = 1  # one process: nothing is asked, nothing changes
        torch.set_num_threads(3)
        callback.setup(trainer, trainer, "fit")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
