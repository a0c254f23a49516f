"""Random numbers of a batch that several processes share."""

from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.mixed_attacks import BlockPGD, MixedPGD
from rampart.attacks import FAB, PGD, Attack, Ensemble, Level, Square
from rampart.attacks.random import (
    SharedGenerator,
    derive_generator,
    draw_below,
    draw_normal,
    draw_uniform,
    make_generator,
    make_shared_generator,
)
from tests.conftest import small_network

PURPOSE = "train", 3, 0, 7, 5
ATTACKS: list[Attack] = [
    PGD(steps=2, restarts=2),
    PGD(steps=2, norm="L2"),
    PGD(steps=3, restarts=3, iterate="best", stop_when_fooled=True),
    PGD(steps=1, start=Level(0.2, 0.8)),
    FAB(steps=2, restarts=2),
    Square(queries=5, restarts=2),
    Square(queries=5, norm="L2"),
    Ensemble((PGD(steps=1), Square(queries=3))),
    MixedPGD((PGD(steps=1), PGD(steps=2), BlockPGD(steps=2, block_sides=(3,)))),
]


def whole_and_parts(world: int = 2) -> tuple[torch.Generator, list[torch.Generator]]:
    parts = [make_shared_generator("cpu", rank, world, *PURPOSE) for rank in range(world)]
    return make_shared_generator("cpu", 0, 1, *PURPOSE), parts


@pytest.mark.parametrize("world", [2, 3])
def test_processes_draw_the_rows_of_one_process(world: int) -> None:
    whole, parts = whole_and_parts(world)
    like = torch.zeros(1, dtype=torch.float64)
    for _ in range(2):
        for draw in (draw_uniform, draw_normal, lambda shape, like, g: draw_below(9, shape, like.device, g)):
            rows = [draw((4, 3, 2), like, part) for part in parts]
            assert all(part.is_contiguous() for part in rows)
            assert torch.equal(torch.stack(rows, 1).flatten(0, 1), draw((4 * world, 3, 2), like, whole))


def test_one_process_has_a_plain_generator() -> None:
    whole, _ = whole_and_parts()
    assert type(whole) is torch.Generator
    expected = torch.rand(3, 2, generator=make_generator("cpu", *PURPOSE))
    assert torch.equal(draw_uniform((3, 2), expected, whole), expected)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.norm} {attack.name}")
def test_processes_attack_their_images_as_one_process_does(attack: Attack, images: Tensor, labels: Tensor) -> None:
    network = small_network().eval()
    whole, parts = whole_and_parts()
    eps = 0.3 if attack.norm == "Linf" else 2.0
    expected = attack(network, images, labels, eps, generator=whole)
    for rank, part in enumerate(parts):
        adv = attack(network, images[rank::2], labels[rank::2], eps, generator=part)
        torch.testing.assert_close(adv, expected[rank::2])
    assert not torch.equal(expected, images)


def test_code_that_uses_it_directly_gets_other_numbers_in_each_process_and_the_same_on_resume() -> None:
    numbers = [
        torch.rand(5, generator=generator).tolist()
        for generator in (*whole_and_parts()[1], whole_and_parts()[0], *whole_and_parts()[1])
    ]
    assert numbers[:2] == numbers[3:]
    assert len({tuple(row) for row in numbers[:3]}) == 3


def test_a_state_restores_both_kinds_of_numbers() -> None:
    _, (_, part) = whole_and_parts()
    like = torch.zeros(1)

    def draw() -> Tensor:
        return torch.cat([torch.rand(2, generator=part), draw_uniform((2,), like, part)])

    draw()
    state = part.get_state()
    expected = draw()
    assert not torch.equal(draw(), expected)
    part.set_state(state)
    assert torch.equal(draw(), expected)


def test_derived_generators_share_the_batch_too() -> None:
    whole, parts = whole_and_parts()
    derived: list[Any] = [derive_generator(generator, "ensemble", 1) for generator in (whole, *parts)]
    assert [type(generator) for generator in derived] == [torch.Generator, SharedGenerator, SharedGenerator]
    like = torch.zeros(1)
    expected = draw_uniform((4,), like, derived[0])
    assert torch.equal(draw_uniform((2,), like, derived[2]), expected[1::2])
    same = make_generator("cpu", "ensemble", whole.initial_seed(), 1)
    assert torch.equal(torch.rand(4, generator=same), expected)
