"""Custom attacks in a search: identified by settings and code, and checked for valid output."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import Attack, Eps, Model, NamedAttack
from rampart.evaluation import WorstCaseSearch, in_memory
from rampart.evaluation.code_hash import hash_code


class Shift(Attack):
    """Brightens images in place by a part of eps. Not a dataclass, and its name has a slash."""

    norm = "Linf"

    def __init__(self, part: float = 1.0, form: Callable[[Tensor], Any] = lambda adv: adv) -> None:
        self.part, self.form = part, form

    @property
    def name(self) -> str:
        return "brighter by 8/255"

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        adv: Tensor = self.form(images.add_(self.part * float(eps)).clamp_(0, 1))
        return adv


class Bright(nn.Module):
    """Predicts class 0 for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


IMAGES, LABELS = torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.int64)


def search(attack: Attack, cache_dir: Path | None = None, model: nn.Module | None = None) -> WorstCaseSearch:
    return WorstCaseSearch(model or Bright().eval(), in_memory(IMAGES, LABELS), [attack], [0.1, 0.2], cache_dir)


def test_attacks_with_different_attributes_share_no_results(tmp_path: Path) -> None:
    robust = [search(Shift(part), tmp_path).run().count_robust(0.2) for part in (0.0, 1.0, 0.0)]
    assert robust == [4, 0, 4]


def test_an_attack_that_works_in_place_changes_only_its_copy() -> None:
    before = IMAGES.clone()
    # Brightened by 0.04 at eps 0.1 and by 0.08 at 0.2; the sum of both would fool the model.
    found = search(Shift(0.4)).run()
    assert (found.count_robust(0.1), found.count_robust(0.2)) == (4, 0)
    assert not torch.equal(NamedAttack(Shift(), 0.1)(Bright(), IMAGES, LABELS), IMAGES)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda adv: adv.double(), "float64"),
        (lambda adv: np.asarray(adv), "a ndarray"),
        (lambda adv: None, "a NoneType"),
        (lambda adv: {"a": adv}["b"], "KeyError: .b."),
    ],
)
def test_invalid_output_is_refused_with_the_attacks_name(form: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"brighter by 8/255.*{message}"):
        search(Shift(form=form)).run()


def test_code_hash_changes_with_the_code_of_a_custom_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "custom_attack_of_a_test.py"
    file.write_text("from tests.rampart.evaluation.test_custom_attacks import Shift\nclass Mine(Shift):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("custom_attack_of_a_test").Mine()
    before = hash_code([mine])
    assert before != hash_code([Shift()])
    assert before == hash_code([mine])
    file.write_text(f"{file.read_text()}    part = 2\n")
    assert before != hash_code([mine])


def test_a_network_that_fails_on_one_image_is_refused_before_any_attack() -> None:
    class Squeezed(Bright):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).squeeze(0)

    with pytest.raises(ValueError, match=r"must return logits of shape \(1, classes\) for 1 images"):
        _ = search(Shift(), model=Squeezed().eval()).clean_pass
