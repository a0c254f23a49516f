import pytest
import torch
from torch import Tensor

from experiments.mixed_attacks import BlockPGD
from experiments.mixed_attacks.blocks import block_means
from rampart.attacks import PGD, AtImage
from tests.conftest import LinearModel


def blocks_of(means: Tensor) -> list[Tensor]:
    """Return a mask for each group of pixels of one image that share a value."""
    return [means == value for value in means.unique()]


def test_each_pixel_gets_the_mean_of_its_block() -> None:
    grad = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    means = block_means(grad, 4, torch.Generator().manual_seed(1))
    for image, averaged in zip(grad.flatten(0, 1), means.flatten(0, 1), strict=True):
        masks = blocks_of(averaged.round(decimals=5))
        assert 4 <= len(masks) <= 9
        for mask in masks:
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert mask.sum() == len(rows) * len(columns)
            assert len(rows) <= 4
            assert len(columns) <= 4
            assert averaged[mask].mean() == pytest.approx(image[mask].mean().item(), abs=1e-5)


def test_each_call_has_a_new_random_grid() -> None:
    grad = torch.randn(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    grids = {tuple(block_means(grad, 4, generator).flatten().tolist()) for _ in range(30)}
    assert len(grids) > 5


def test_blocks_wider_than_the_image_split_it_into_four_at_most() -> None:
    assert len(block_means(torch.randn(1, 1, 5, 5), 50, torch.Generator().manual_seed(0)).unique()) <= 4


def test_a_step_on_a_linear_model_gains_the_sum_of_the_blocks_gains() -> None:
    weight = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.full((1, 1, 8, 8), 0.5)
    attack = BlockPGD(steps=1, relative_step_size=1.0, start=AtImage(), block_sides=(3,))
    adv = attack(LinearModel(weight), images, torch.zeros(1, dtype=torch.long), 0.1, torch.Generator().manual_seed(4))
    means = block_means(weight[None], 3, torch.Generator().manual_seed(4))
    gained = ((images - adv) * weight).sum()
    assert gained == pytest.approx(0.1 * sum(abs(weight[0][m].sum().item()) for m in blocks_of(means[0, 0])), rel=1e-4)
    assert gained < 0.1 * weight.abs().sum()


@pytest.mark.parametrize("weight_gradient", [False, True])
def test_sides_are_spread_over_the_steps_coarse_to_fine(monkeypatch: pytest.MonkeyPatch, weight_gradient: bool) -> None:
    sides: list[int] = []

    def record(grad: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
        sides.append(side)
        return block_means(grad, side, generator)

    monkeypatch.setattr("experiments.mixed_attacks.blocks.block_means", record)
    images, labels = torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    attack, model = BlockPGD(steps=7, block_sides=(7, 3, 1)), LinearModel(torch.randn(1, 8, 8))
    if weight_gradient:
        attack.with_weight_gradient(model, images, labels, 0.1, [])
    else:
        attack(model, images, labels, 0.1)
    assert sides == [7, 7, 7, 3, 3]  # and two steps of single pixels


def test_blocks_of_one_pixel_give_the_result_of_pgd() -> None:
    model, images, labels = LinearModel(torch.randn(1, 4, 4)), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    ours, pgd = (
        attack(model, images, labels, 0.1, torch.Generator().manual_seed(3))
        for attack in (BlockPGD(steps=3), PGD(steps=3))
    )
    assert torch.equal(ours, pgd)


@pytest.mark.parametrize("sides", [(), (0,), (2, -1), (1.5,)])
def test_block_sides_must_be_whole_numbers_from_1(sides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block_sides must be whole numbers from 1"):
        BlockPGD(block_sides=sides)
