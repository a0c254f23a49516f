from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampart.schedules import Phase, eps_schedule

IAT = [Phase(epochs=40, start_eps=0.01, end_eps=0.4, interval="epoch")]
EXTENDED = [Phase(epochs=30, end_eps=0.3), Phase(epochs=5, end_eps=0.4, steps=200, step_size=0.005)]


def eps_at(phases: list[Phase], epoch: int, step: int = 0, steps_per_epoch: int = 469) -> float:
    return eps_schedule(phases, epoch, step, steps_per_epoch, epoch * steps_per_epoch + step)[1]


@pytest.mark.parametrize("epoch", range(40))
@pytest.mark.parametrize("step", [0, 17, 468])
def test_iat_has_the_papers_eps_per_epoch(epoch: int, step: int) -> None:
    assert eps_at(IAT, epoch, step) == float(f"{(epoch + 1) / 100:.2f}")


def test_extended_switches_eps_and_attack_at_epoch_30() -> None:
    assert [eps_at(EXTENDED, epoch, 468) for epoch in (0, 29, 30, 34)] == [0.3, 0.3, 0.4, 0.4]
    assert eps_schedule(EXTENDED, 29, 468, 469, 0)[0].steps is None
    assert eps_schedule(EXTENDED, 30, 0, 469, 0)[0].steps == 200


def test_a_linear_ramp_by_step_goes_from_its_start_to_its_end() -> None:
    phases = [Phase(epochs=2, start_eps=0, end_eps="8/255"), Phase(epochs=1, end_eps="8/255")]
    values = [eps_at(phases, epoch, step, 5) for epoch in range(3) for step in range(5)]
    assert values[0] == 0
    assert values[9:] == [8 / 255] * 6
    assert values[3] == pytest.approx(8 / 255 * 3 / 9)


def test_a_cosine_ramp_is_flat_at_both_ends() -> None:
    phases = [Phase(train_steps=101, start_eps=0.1, end_eps=0.3, shape="cosine")]
    values = [eps_schedule(phases, 0, step, 101, step)[1] for step in range(101)]
    assert (values[0], values[100]) == (0.1, 0.3)
    assert values[50] == pytest.approx(0.2)
    assert values[1] - values[0] < 0.1 * (values[51] - values[50])


@pytest.mark.parametrize(
    ("epochs", "eps"),
    [
        (1, 0.0),
        (2, 0.0008),
        (3, 0.0040),
        (4, 0.0126),
        (5, 0.0308),
        (6, 0.0554),
        (8, 0.1046),
        (10, 0.1538),
        (15, 0.2769),
    ],
)
def test_a_smoothed_ramp_has_the_eps_of_shi_et_al_after_each_epoch(epochs: int, eps: float) -> None:
    exact = Phase(train_steps=20 * 235 + 1, start_eps=0, end_eps=0.4, shape="smoothed")
    assert exact.eps_at(epochs * 235, exact.length) == pytest.approx(eps, abs=5e-5)
    in_epochs = [Phase(epochs=20, start_eps=0, end_eps=0.4, shape="smoothed"), Phase(epochs=50, end_eps=0.4)]
    assert eps_at(in_epochs, epochs, 0, 235) == pytest.approx(eps, abs=1.5e-4)


def test_a_smoothed_ramp_has_no_kink_and_goes_from_any_start_to_any_end() -> None:
    rising = Phase(train_steps=4001, start_eps=0.1, end_eps=0.4, shape="smoothed")
    values = [rising.eps_at(step, 4001) for step in range(4001)]
    slopes = [after - before for before, after in pairwise(values)]
    assert (values[0], values[-1]) == (0.1, 0.4)
    assert max(abs(after - before) for before, after in pairwise(slopes)) < 0.005 * max(slopes)
    falling = Phase(train_steps=4001, start_eps=0.4, end_eps=0.1, shape="smoothed")
    assert [falling.eps_at(step, 4001) for step in range(4001)] == pytest.approx([0.5 - value for value in values])


def test_phases_in_train_steps_run_across_epochs() -> None:
    phases = [Phase(train_steps=7, end_eps=0.1), Phase(train_steps=3, start_eps=0.2, end_eps=0.4)]
    values = [eps_schedule(phases, step // 4, step % 4, 4, step)[1] for step in range(12)]
    assert values == pytest.approx([0.1] * 7 + [0.2, 0.3, 0.4, 0.4, 0.4])


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    st.sampled_from(["linear", "cosine", "smoothed"]),
    st.sampled_from(["step", "epoch"]),
    st.integers(1, 6),
)
def test_eps_stays_between_the_ends_of_its_phase(
    lengths: list[tuple[int, float, float]], shape: Any, interval: Any, per_epoch: int
) -> None:
    phases = [Phase(epochs=n, start_eps=a, end_eps=b, shape=shape, interval=interval) for n, a, b in lengths]
    epoch = 0
    for n, a, b in lengths:
        values = [eps_at(phases, epoch + e, s, per_epoch) for e in range(n) for s in range(per_epoch)]
        slack = 1e-6
        assert all(min(a, b) - slack <= value <= max(a, b) + slack for value in values)
        assert values[-1] == b
        assert values == sorted(values, reverse=a > b) or max(values) - min(values) < slack
        epoch += n


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"end_eps": 0.4}, "needs either epochs or train_steps"),
        ({"end_eps": 0.4, "epochs": 3, "train_steps": 3}, "needs either epochs or train_steps"),
        ({"end_eps": 0.4, "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"end_eps": -0.1, "epochs": 1}, "end_eps must be at least 0"),
        ({"end_eps": "x", "epochs": 1}, "end_eps must be a number"),
        ({"end_eps": 0.4, "start_eps": "nan", "epochs": 1}, "start_eps must be a number"),
        ({"end_eps": 0.4, "epochs": 1, "shape": "square"}, "shape must be one of"),
        ({"end_eps": 0.4, "epochs": 1, "interval": "hour"}, "interval must be one of"),
        ({"end_eps": 0.4, "train_steps": 5, "interval": "epoch"}, "needs a length in epochs"),
        ({"end_eps": 0.4, "start_eps": 0.1, "epochs": 1, "shape": "constant"}, "needs start_eps equal to end_eps"),
        ({"end_eps": 0.4, "epochs": 1, "step_size": 0}, "step_size must be above 0"),
    ],
)
def test_wrong_phases_raise(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phase(**fields)
