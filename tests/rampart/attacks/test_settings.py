from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rampart.attacks import APGD, FAB, PGD, Attack, Eps, Square
from rampart.attacks.losses import margin


def test_steps_and_step_size_are_replaced() -> None:
    relative = PGD(steps=3, relative_step_size=0.5, restarts=2)
    assert relative.with_settings() == relative
    assert relative.with_settings(steps=7) == PGD(steps=7, relative_step_size=0.5, restarts=2)
    assert relative.with_settings(step_size="2/255") == PGD(steps=3, step_size="2/255", restarts=2)
    assert relative.with_settings(steps="paper", step_size=0.01) == PGD(steps="paper", step_size=0.01, restarts=2)
    assert APGD().with_settings(steps=5) == APGD(steps=5)
    assert FAB().with_settings(steps=5) == FAB(steps=5)
    with pytest.raises(ValueError, match="step_size must be above 0"):
        PGD().with_settings(step_size=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Square().with_settings(steps=3), "Square has no steps to set"),
        (lambda: APGD().with_settings(step_size=0.1), "APGD has no step_size to set"),
        (lambda: FAB().with_loss("margin"), "FAB has no loss to set"),
        (lambda: APGD(targets=3).with_loss("margin"), "leave targets out"),
    ],
)
def test_replacing_a_setting_that_an_attack_lacks_raises_with_one_line(change: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        change()
    assert "\n" not in str(caught.value)


def test_losses_are_replaced() -> None:
    assert PGD().with_loss("dlr") == PGD(loss="dlr")
    assert APGD().with_loss(margin) == APGD(loss=margin)
    with pytest.raises(ValueError, match="loss must be one of"):
        PGD().with_loss("nonsense")  # type: ignore[arg-type]


def test_the_fields_of_a_custom_attack_are_its_settings() -> None:
    @dataclass(frozen=True)
    class Fields(Attack):
        steps: int = 3
        norm = "Linf"

        @property
        def name(self) -> str:
            return "fields"

        def __call__(
            self, model: Any, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
        ) -> Tensor:
            return images

    assert Fields().with_settings(steps=8).steps == 8
    with pytest.raises(TypeError, match="Fields has no step_size to set"):
        Fields().with_settings(step_size=0.1)
