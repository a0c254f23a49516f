from typing import Any

import pytest
import torch
from torch import Tensor

from rampart.attacks import PGD, AtImage, Attack, Eps, Model
from rampart.evaluation import fooling_eps
from tests.conftest import LinearModel


class Counting(PGD):
    """Records at which eps how many images were attacked."""

    calls: list[tuple[Eps, int]] = []  # noqa: RUF012 (a record, reset by the test)

    def __call__(self, model: Model, images: Tensor, labels: Tensor, eps: Eps, **settings: Any) -> Tensor:  # type: ignore[override]
        self.calls.append((eps, int(settings["active"].sum())))
        return super().__call__(model, images, labels, eps, **settings)


def test_smallest_eps_is_exact_on_a_linear_model_and_fooled_images_are_not_attacked_again() -> None:
    # The score is the pixel sum minus 8; an image of pixels 0.5 + m is fooled once eps > m.
    class Centred(LinearModel):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) - torch.tensor([8.0, 0.0])

    margins = torch.tensor([-0.1, 0.05, 0.15, 0.25, 0.45])
    images = (0.5 + margins).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    labels = torch.zeros(5, dtype=torch.long)
    Counting.calls.clear()
    attack: Attack = Counting(steps=1, relative_step_size=1.0, start=AtImage())
    smallest = fooling_eps(Centred(torch.ones(16)), images, labels, attack, [0.0, 0.1, 0.2, 0.3])
    assert smallest.tolist() == [0.0, 0.1, 0.2, 0.3, torch.inf]
    assert Counting.calls == [(0.0, 5), (0.1, 4), (0.2, 3), (0.3, 2)]


@pytest.mark.parametrize("seed", [0, 1])
def test_an_images_eps_does_not_depend_on_the_others(seed: int) -> None:
    torch.manual_seed(seed)
    model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), torch.rand(8, 1, 4, 4)
    labels = model(images).argmax(1)
    grid, attack = [0.0, 0.02, 0.04, 0.06, 0.08], PGD(steps=1, relative_step_size=0.1)

    def smallest(labels: Tensor) -> Tensor:
        generators = {eps: torch.Generator().manual_seed(index) for index, eps in enumerate(grid)}
        return fooling_eps(model, images, labels, attack, grid, generators.__getitem__)

    wrong = torch.arange(8) % 2 == 0  # these are misclassified at eps 0
    assert torch.equal(smallest(labels)[~wrong], smallest(torch.where(wrong, (labels + 1) % 3, labels))[~wrong])


def test_logits_that_are_not_finite_are_refused() -> None:
    def model(images: Tensor) -> Tensor:
        return torch.stack([1.9 - images.sum(1), torch.where(images.sum(1) > 2, torch.nan, 0)], 1)

    images, labels = torch.full((2, 4), 0.45), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"logits under PGD-5 at eps 0\.3 are NaN"):
        fooling_eps(model, images, labels, PGD(steps=5), [0.0, 0.3])


def test_a_grid_must_rise() -> None:
    with pytest.raises(ValueError, match="eps_grid must rise"):
        fooling_eps(LinearModel(torch.ones(4)), torch.rand(1, 4), torch.tensor([0]), PGD(), [0.1, 0.1])
