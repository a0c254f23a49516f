from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.attacks.eps import NormName
from rampart.attacks.norms import NORMS


class Gate(nn.Module):
    """Two logits that depend on pixels between 0.45 and 0.55 alone, as behind a first layer of thresholds."""

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1).clamp(0.45, 0.55).mean(1)
        return torch.stack([0.5 - score, score - 0.5], 1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_start_is_the_point_of_the_ball_that_is_nearest_to_the_level(norm: NormName) -> None:
    images = torch.rand(5, 1, 8, 8)
    start = PGD(norm, steps=0, start_levels=(0.3, 0.3))(nn.Flatten(), images, torch.zeros(5, dtype=torch.long), 0.25)
    if norm == "Linf":
        assert torch.allclose(start, torch.maximum(torch.minimum(torch.tensor(0.3), images + 0.25), images - 0.25))
    distance = (start - 0.3).flatten(1).norm(dim=1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        other = NORMS[norm].random_start(images, 0.25, generator)
        assert bool(((other - 0.3).flatten(1).norm(dim=1) >= distance).all())


def test_levels_are_drawn_for_each_image_and_follow_the_generator() -> None:
    images, labels = torch.full((50, 1, 4, 4), 0.5), torch.zeros(50, dtype=torch.long)
    attack = PGD(steps=0, start_levels=(0.4, 0.7))
    first, again, other = (
        attack(nn.Flatten(), images, labels, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    levels = first[:, 0, 0, 0]
    assert torch.equal(first, levels.view(-1, 1, 1, 1).expand_as(first))
    assert levels.min() >= 0.4
    assert levels.max() <= 0.7
    assert levels.std() > 0.05


def test_behind_thresholds_mid_gray_finds_what_no_short_step_from_the_image_does() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    short: dict[str, Any] = {"steps": 10, "relative_step_size": 0.02}
    from_image = PGD(random_start=False, **short)(Gate(), images, labels, 0.6)
    from_gray = PGD(start_levels=(0.5, 0.5), **short)(Gate(), images, labels, 0.6)
    assert bool((Gate()(from_image).argmax(1) == 0).all())
    assert bool((Gate()(from_gray).argmax(1) == 1).all())


@pytest.mark.parametrize("levels", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_levels_that_are_none_are_refused(levels: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"start_levels must be two rising numbers in \[0, 1\], got"):
        PGD(start_levels=levels)
