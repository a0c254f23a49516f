import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rampart.collapse import CollapseDetector, Signs

BALANCED = (3.0,) * 10
HEALTHY = Signs(30, 1.5, math.log(10), BALANCED, 0.2, 3, 1.0, 0.5, 0.5, 1.0, 0.8, True)
CONSTANT = replace(HEALTHY, loss=math.log(10), information=1e-6, spread=1e-5, top_share=1.0, alignment=None)
AT_START = replace(CONSTANT, information=1e-3)


def find(signs: Sequence[Signs], detector: CollapseDetector | None = None, every: int = 10) -> list[tuple[str, int]]:
    """Return kind and step of the alarms of a sequence of measurements."""
    detector = detector or CollapseDetector()
    return [
        (alarm.kind, alarm.step) for number, each in enumerate(signs) for alarm in detector.update(each, every * number)
    ]


def test_a_network_that_never_learned_is_reported_after_the_grace_period() -> None:
    assert find([AT_START] + [CONSTANT] * 40) == [("constant output", 160)]
    assert find([AT_START] + [CONSTANT] * 40, CollapseDetector(grace=0)) == [("constant output", 90)]


def test_a_network_that_had_learned_is_reported_after_five_measurements() -> None:
    assert find([AT_START] + [HEALTHY] * 20 + [CONSTANT] * 10) == [("constant output", 250)]


def test_a_collapse_is_reported_once_per_episode() -> None:
    episode = [HEALTHY] * 10 + [CONSTANT] * 40
    assert find(episode * 2) == [("constant output", 140), ("constant output", 640)]
    brief = [HEALTHY] * 10 + ([CONSTANT] * 20 + [HEALTHY] * 2) * 2
    assert find(brief) == [("constant output", 140)]


def test_a_slow_start_is_no_collapse() -> None:
    warm_up = [AT_START] * 190 + [HEALTHY] * 10
    assert find(warm_up) == []
    falls = [replace(CONSTANT, information=1e-3 * 0.97**number) for number in range(100)]
    rises = [replace(CONSTANT, information=falls[-1].information * 1.1**number) for number in range(100)]
    assert find(falls + rises + [HEALTHY] * 10) == []


def test_a_training_that_never_starts_is_reported_after_the_patience() -> None:
    assert find([AT_START] * 300) == [("constant output", 2000)]
    assert find([AT_START] * 300, CollapseDetector(patience=500)) == [("constant output", 500)]


def test_a_loss_near_that_of_a_constant_prediction_is_no_collapse_with_information() -> None:
    assert find([AT_START] + [replace(HEALTHY, loss=2.29, information=0.05)] * 300) == []


@pytest.mark.parametrize("counts", [(30.0, 0.0), (27.0, 3.0), (15.0, 15.0)])
def test_loss_and_information_are_compared_with_the_entropy_of_the_labels(counts: tuple[float, ...]) -> None:
    shares = [count / 30 for count in counts if count]
    entropy = -sum(share * math.log(share) for share in shares)
    kept: dict[str, Any] = {"label_counts": counts, "label_entropy": entropy, "loss": entropy}
    start, constant = replace(AT_START, **kept), replace(CONSTANT, **kept)
    assert find([start] + [constant] * 40) == ([("constant output", 160)] if entropy else [])
    assert find([start] + [replace(constant, loss=0.9 * entropy)] * 40) == []


def test_labels_are_counted_over_all_batches_of_a_constant_output() -> None:
    batches = [
        replace(CONSTANT, label_counts=tuple(30.0 * (i == j) for j in range(10)), label_entropy=0.0) for i in range(10)
    ]
    assert find([AT_START, *batches * 4]) == [("constant output", 160)]


def test_a_sudden_fall_of_the_alignment_is_reported_and_a_slow_one_is_not() -> None:
    slow = [replace(HEALTHY, alignment=0.97 - 0.002 * number) for number in range(200)]
    assert find(slow + [replace(HEALTHY, alignment=0.57)] * 100) == []
    sudden = [replace(HEALTHY, alignment=0.05)] * 20
    assert find(slow + sudden) == [("catastrophic overfitting", 2040)]
    assert find(slow + sudden + slow[:50] + sudden)[1:] == [("catastrophic overfitting", 2740)]


def test_images_lost_to_a_stronger_attack_in_two_checks_are_reported() -> None:
    detector = CollapseDetector()
    checks = [(20, 2), (20, 9), (20, 3), (3, 3), (20, 3), (20, 7), (20, 7), (20, 12), (20, 1), (18, 0), (18, 18)]
    found = [detector.check(32, *check, step=step) for step, check in enumerate(checks)]
    assert [step for step, alarms in enumerate(found) if alarms] == [6, 10]
    assert "of 64 held-out images 62% are robust to the training attack, but 41% to a stronger" in found[6][0].reason
    assert detector.check(0, 0, 0, step=11) == []


def test_checks_are_wanted_after_a_finding_and_while_the_alignment_falls() -> None:
    detector = CollapseDetector()
    detector.check(32, 20, 10, step=0)
    assert detector.wants_confirmation
    detector.check(32, 20, 10, step=1)
    assert not detector.wants_confirmation
    assert not detector.doubts
    find([replace(HEALTHY, alignment=0.9)] * 40 + [replace(HEALTHY, alignment=0.6)] * 5, detector)
    assert detector.doubts


def test_each_tenth_that_the_alignment_loses_is_a_new_low() -> None:
    detector = CollapseDetector()
    lows = []
    for number in range(200):
        alignment = 0.1 + min(number, 20) * 0.025 - max(number - 100, 0) * 0.005
        detector.update(replace(HEALTHY, alignment=alignment), number)
        lows += [number] if detector.at_new_low else []
    assert 0.54 * 0.9 < 0.6 - 0.005 * (lows[0] - 102) < 0.54  # the average of the last five measurements
    assert 8 <= len(lows) <= math.log(0.6 / 0.105) / math.log(1 / 0.9)


def test_logits_that_are_not_finite_are_reported_once() -> None:
    broken = replace(HEALTHY, finite=False, loss=math.nan)
    assert find([HEALTHY, broken, broken, HEALTHY, broken]) == [("non-finite logits", 10), ("non-finite logits", 40)]


def test_a_restored_detector_continues_like_the_first() -> None:
    signs = [AT_START] + [CONSTANT] * 12 + [HEALTHY] * 20 + [CONSTANT] * 30
    for cut in (3, 15, 40):
        first, second = CollapseDetector(), CollapseDetector()
        begun = find(signs[:cut], first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        rest = [alarm.step for i, each in enumerate(signs[cut:], cut) for alarm in second.update(each, 10 * i)]
        assert [step for _, step in begun] + rest == [step for _, step in find(signs)]
        assert second.state_dict() != first.state_dict()


def test_health_and_reset() -> None:
    detector = CollapseDetector()
    find([AT_START] + [HEALTHY] * 10, detector)
    assert detector.healthy
    find([CONSTANT], detector)
    assert not detector.healthy
    detector.reset()
    assert detector.state_dict() == CollapseDetector().state_dict()


def test_an_alarm_names_the_signs() -> None:
    detector = CollapseDetector(grace=0)
    alarm = next(a for i in range(20) for a in detector.update(CONSTANT if i else AT_START, 10 * i))
    for part in ("loss 2.303", "constant: 2.303", "information 1e-06 nats", "100% predicted as class 3"):
        assert part in alarm.seen


@pytest.mark.parametrize("settings", [{"grace": -1}, {"patience": -1}])
def test_negative_numbers_of_steps_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a number of steps, 0 or more, got -1"):
        CollapseDetector(**settings)
