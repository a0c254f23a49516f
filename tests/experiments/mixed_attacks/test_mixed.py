from dataclasses import replace

import pytest
import torch
from torch import Tensor

from experiments.mixed_attacks import MixedPGD
from rampart.attacks import PGD, AtImage
from tests.conftest import LinearModel, small_network


def test_each_attack_is_drawn_and_the_result_is_that_of_the_one_drawn(images: Tensor, labels: Tensor) -> None:
    network = small_network()
    attacks = (PGD(steps=2, start=AtImage()), PGD(steps=1, relative_step_size=0.1, start=AtImage()))
    expected = [attack(network, images, labels, 0.3) for attack in attacks]
    generator = torch.Generator().manual_seed(0)
    mixed = MixedPGD(attacks)
    found = [mixed(network, images, labels, 0.3, generator) for _ in range(40)]
    drawn = [next(i for i, one in enumerate(expected) if torch.equal(one, adv)) for adv in found]
    assert 8 <= sum(drawn) <= 32


def test_steps_given_to_the_mixture_are_those_of_every_attack() -> None:
    mixed = replace(MixedPGD((PGD(steps=2), PGD(steps=3, relative_step_size=0.5))), steps=7)
    assert [attack.steps for attack in mixed.attacks] == [7, 7]
    assert mixed.attacks[1].relative_step_size == 0.5
    assert mixed.name == "one of PGD-7"


def test_the_draw_depends_on_the_generator_alone() -> None:
    model, images, labels = LinearModel(torch.randn(1, 4, 4)), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    mixed = MixedPGD((PGD(steps=1), PGD(steps=2), PGD(steps=3)))
    first, second = (mixed(model, images, labels, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("attacks", [(), (PGD(), PGD(norm="L2"))])
def test_no_attack_and_attacks_of_two_norms_are_refused(attacks: tuple[PGD, ...]) -> None:
    with pytest.raises(ValueError, match="attacks must be at least one and of one norm"):
        MixedPGD(attacks)
