from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import NORMS, PGD, AtImage, Level, NormName, Start, Uniform


class Gate(nn.Module):
    """Two logits that depend on pixels between 0.45 and 0.55 alone, as behind a first layer of thresholds."""

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1).clamp(0.45, 0.55).mean(1)
        return torch.stack([0.5 - score, score - 0.5], 1)


def starting_points(start: Start, images: Tensor, eps: float, seed: int = 0, norm: NormName = "Linf") -> Tensor:
    labels, generator = torch.zeros(len(images), dtype=torch.long), torch.Generator().manual_seed(seed)
    return PGD(norm=norm, steps=0, start=start)(nn.Flatten(), images, labels, eps, generator)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_each_start_uses_the_random_numbers_of_its_formula(norm: NormName) -> None:
    images, generator = torch.rand(5, 1, 8, 8), torch.Generator()
    uniform = NORMS[norm].random_start(images, 0.25, generator.manual_seed(3))
    levels = 0.3 + (0.7 - 0.3) * torch.rand(5, 1, 1, 1, generator=generator.manual_seed(3))
    level = NORMS[norm].project(levels.expand_as(images), images, 0.25)
    assert torch.equal(starting_points(Uniform(), images, 0.25, 3, norm), uniform)
    assert torch.equal(starting_points(Level(0.3, 0.7), images, 0.25, 3, norm), level)
    assert torch.equal(starting_points(AtImage(), images, 0.25, 3, norm), images)
    assert PGD() == PGD(start=Uniform())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_level_starts_at_the_nearest_point_of_the_ball(norm: NormName) -> None:
    images = torch.rand(5, 1, 8, 8)
    start = starting_points(Level(0.3, 0.3), images, 0.25, norm=norm)
    if norm == "Linf":
        assert torch.allclose(start, torch.maximum(torch.minimum(torch.tensor(0.3), images + 0.25), images - 0.25))
    distance = (start - 0.3).flatten(1).norm(dim=1)
    for seed in range(20):
        other = NORMS[norm].random_start(images, 0.25, torch.Generator().manual_seed(seed))
        assert bool(((other - 0.3).flatten(1).norm(dim=1) >= distance).all())


def test_levels_are_random_per_image_and_follow_the_generator() -> None:
    images = torch.full((50, 1, 4, 4), 0.5)
    first, again, other = (starting_points(Level(0.4, 0.7), images, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    levels = first[:, 0, 0, 0]
    assert torch.equal(first, levels.view(-1, 1, 1, 1).expand_as(first))
    assert levels.min() >= 0.4
    assert levels.max() <= 0.7
    assert levels.std() > 0.05


def test_behind_thresholds_short_steps_from_mid_gray_fool_and_those_from_the_image_do_not() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    short: dict[str, Any] = {"steps": 10, "relative_step_size": 0.02}
    from_image = PGD(start=AtImage(), **short)(Gate(), images, labels, 0.6)
    from_gray = PGD(start=Level(0.5, 0.5), **short)(Gate(), images, labels, 0.6)
    assert bool((Gate()(from_image).argmax(1) == 0).all())
    assert bool((Gate()(from_gray).argmax(1) == 1).all())


@pytest.mark.parametrize("levels", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_level_rejects_levels_outside_the_box_or_in_the_wrong_order(levels: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"low and high of the start must be levels in \[0, 1\] with low <= high, got"):
        Level(*levels)


def test_settings_of_a_report_name_the_start_and_its_levels() -> None:
    assert PGD().settings()["start"] == {"class": "Uniform"}
    assert PGD(start=Level(0.4, 0.6)).settings()["start"] == {"class": "Level", "low": 0.4, "high": 0.6}
