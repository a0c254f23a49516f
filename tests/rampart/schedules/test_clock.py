import math

import pytest

from rampart.schedules import Clock


def run(clock: Clock, steps: int, paces: dict[int, float] | None = None) -> list[int]:
    """Take steps, and return the number of ticks of a schedule in steps after each."""
    ticks = []
    for step in range(clock.step, clock.step + steps):
        clock.pace = (paces or {}).get(step, clock.catch_up())
        ticks.append(clock.count_ticks(in_epochs=False))
        clock.advance(step + 1)
    return [-1 if tick is None else tick for tick in ticks]


def test_an_unmoved_clock_leaves_schedules_alone() -> None:
    clock = Clock(steps_per_epoch=3, end=9)
    assert run(clock, 9) == [-1] * 9
    assert (clock.time, clock.moved) == (9, False)


def test_a_clock_that_was_stopped_ends_with_the_run() -> None:
    clock = Clock(steps_per_epoch=3, end=12)
    ticks = run(clock, 12, {2: 0.0, 3: 0.0, 4: 0.0})
    assert ticks[:5] == [-1, -1, 2, 2, 2]
    assert ticks == sorted(ticks)
    assert ticks[-1] == 12
    assert clock.time == pytest.approx(12)


def test_a_clock_that_was_set_back_ends_with_the_run() -> None:
    clock = Clock(steps_per_epoch=4, end=16)
    run(clock, 8)
    clock.set_to(0)
    assert run(clock, 8) == [2, 4, 6, 8, 10, 12, 14, 16]


def test_ticks_in_epochs_are_whole_epochs_of_the_clock() -> None:
    clock = Clock(steps_per_epoch=4, end=16)
    run(clock, 8)
    clock.set_to(0)
    clock.pace = clock.catch_up()
    clock.advance(9)
    assert clock.count_ticks(in_epochs=True) == 0
    clock.advance(10)
    assert clock.count_ticks(in_epochs=True) == 1


def test_a_schedule_in_epochs_of_one_step_ends_with_the_run() -> None:
    clock = Clock(steps_per_epoch=1, end=8)
    run(clock, 4)
    clock.set_to(0)
    run(clock, 4)
    assert clock.count_ticks(in_epochs=True) == 8


def test_without_a_known_end_a_clock_that_was_set_back_does_not_hurry() -> None:
    clock = Clock(end=math.inf)
    run(clock, 8)
    clock.set_to(3)
    assert run(clock, 2) == [4, 5]
