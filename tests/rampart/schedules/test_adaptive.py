import math
from typing import Any

import pytest

from rampart.schedules import AdaptiveRamp, EpsLimit, RampPace


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, r"^ramp.adaptive.share must be above 0 and below 1, got 0.0"),
        ({"patience": 1.5}, r"^ramp.adaptive.patience must be above 0 and below 1, got 1.5"),
        ({"share": 0.7, "final": 0.4}, r"at most 1 together, got 0.7 \+ 0.4"),
    ],
)
def test_settings_that_are_no_shares_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveRamp(**settings)


def test_the_limit_rises_linearly_and_then_ends() -> None:
    limit = EpsLimit(0.1, 0.4, 30)
    assert [limit.eps_at(risen) for risen in (0, 10, 20)] == pytest.approx([0.1, 0.2, 0.3])
    assert limit.eps_at(30) == math.inf


def test_a_ramp_is_a_share_of_the_run_and_no_shorter_than_the_network_can_be_watched() -> None:
    assert AdaptiveRamp().length(10_000) == pytest.approx(1000)
    assert AdaptiveRamp().length(1000) == 200
    assert AdaptiveRamp().length(1000, times=1) == 400
    assert AdaptiveRamp().length(1000, times=5) == 800  # a final phase is left
    assert AdaptiveRamp().length(300) == 120  # time to wait is left
    assert AdaptiveRamp().length(1) == 1


def pace(skills: list[float], steps: int = 1000) -> RampPace:
    made = RampPace(AdaptiveRamp(), 0, steps)
    for i, skill in enumerate(skills):
        made.update(skill, 10 * (i + 1), 10)
    return made


def test_eps_waits_for_a_network_that_has_learned_nothing() -> None:
    assert RampPace(AdaptiveRamp()).waits
    assert pace([0.0] * 5).waits
    assert not pace([0.0] * 5 + [0.3] * 3).waits


def test_eps_rises_while_skill_falls_slowly() -> None:
    falling = [0.9 - 0.008 * i for i in range(60)]
    assert not any(pace(falling[:n]).waits for n in range(1, 60))


def test_eps_waits_after_a_sudden_fall_and_rises_again() -> None:
    assert pace([0.9] * 20 + [0.3] * 5).waits
    assert not pace([0.9] * 20 + [0.3] * 40).waits
    assert pace([0.9] * 20 + [-0.1] * 10).waits


def test_a_ramp_ends_after_its_patience_or_before_the_final_phase() -> None:
    assert not pace([0.0] * 19).ended
    assert pace([0.0] * 21).ended
    assert not pace([0.5] * 79).ended
    assert pace([0.5] * 80).ended


def test_the_state_continues_a_pace() -> None:
    skills = [0.9] * 10 + [0.2] * 7
    one, two = pace(skills), RampPace(AdaptiveRamp())
    two.load_state_dict(one.state_dict())
    for step in range(180, 600, 10):
        one.update(0.3, step, 10)
        two.update(0.3, step, 10)
        assert (one.waits, one.ended) == (two.waits, two.ended)
    assert one.state_dict() == two.state_dict()
