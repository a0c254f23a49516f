from typing import Any

import pytest
import torch
from torch import Tensor

from rampart.attacks import PGD, Eps, Model
from rampart.evaluation import robust_mask
from tests.conftest import LinearModel

# The score is the pixel sum: positive is class 0. An image of 4 equal pixels p is fooled once eps > p.
PIXELS = torch.tensor([0.05, 0.15, 0.25, 0.35])
IMAGES = PIXELS.view(-1, 1).expand(-1, 4).contiguous()
LABELS = torch.tensor([0, 0, 1, 0])


class Centred(LinearModel):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - 0.5)


class Recording(PGD):
    """Records which images were attacked."""

    attacked: list[list[bool]] = []  # noqa: RUF012 (a record, reset by the test)

    def __call__(self, model: Model, images: Tensor, labels: Tensor, eps: Eps, **settings: Any) -> Tensor:  # type: ignore[override]
        self.attacked.append(settings["active"].tolist())
        return super().__call__(model, images, labels, eps, **settings)


@pytest.fixture
def attack() -> Recording:
    Recording.attacked.clear()
    return Recording(steps=1, relative_step_size=2.0)


def test_robust_images_are_correct_clean_and_under_attack(attack: Recording) -> None:
    model, images = Centred(torch.ones(4)), IMAGES + 0.5
    assert robust_mask(model, images, LABELS, attack, 0.2).tolist() == [False, False, False, True]
    assert attack.attacked == [[True, True, False, True]]  # the misclassified clean image is not attacked


def test_only_active_images_are_attacked_and_can_be_robust(attack: Recording) -> None:
    active = torch.tensor([True, False, False, False])
    model, images = Centred(torch.ones(4)), IMAGES + 0.5
    assert robust_mask(model, images, LABELS, attack, 0.01, active=active).tolist() == active.tolist()
    assert not robust_mask(model, images, LABELS, attack, 0.01, active=~active & active).any()
    assert attack.attacked == [active.tolist()]


def test_random_numbers_do_not_depend_on_the_active_images() -> None:
    torch.manual_seed(0)
    model, images = Centred(torch.randn(16)), torch.rand(40, 1, 4, 4)
    labels, attack = model(images).argmax(1), PGD(steps=1, relative_step_size=0.1)
    every = robust_mask(model, images, labels, attack, 0.3, torch.Generator().manual_seed(1))
    half = torch.arange(40) % 2 == 0
    part = robust_mask(model, images, labels, attack, 0.3, torch.Generator().manual_seed(1), half)
    assert torch.equal(part, every & half)
    assert 0 < every.sum() < 40


def test_bad_labels_and_logits_are_refused() -> None:
    def model(images: Tensor) -> Tensor:
        return torch.stack([1.9 - images.sum(1), torch.where(images.sum(1) > 2, torch.nan, 0)], 1)

    images, labels = torch.full((2, 4), 0.45), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"logits under PGD-5 at eps 0\.3 are NaN"):
        robust_mask(model, images, labels, PGD(steps=5), 0.3)
    with pytest.raises(ValueError, match=r"logits in the second batch are NaN"):
        robust_mask(model, images, labels, PGD(steps=5), 0.3, where="in the second batch")
    with pytest.raises(ValueError, match=r"logits on clean images are NaN"):
        robust_mask(model, images + 0.2, labels, PGD(steps=5), 0.3)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\)"):
        robust_mask(model, images, labels + 2, PGD(steps=5), 0.3)
