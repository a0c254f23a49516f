"""The result for an image depends neither on which other images are attacked nor on how early they are fooled."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import APGD, FAB, PGD, AtImage, Attack, Eps, Level, NamedAttack, Square, attack_active
from tests.conftest import small_network

SIZE = 12


class RowByRow(nn.Module):
    """A curved model whose logits don't depend on the batch size, not even by rounding."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_classes, 1, 6, 6, generator=generator).double())

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([((images - 0.5) * w).flatten(1).tanh().sum(1) for w in self.weight], 1)


ATTACKS: list[Any] = [
    PGD(steps=3),
    PGD(steps=3, norm="L2", restarts=3),
    PGD(steps=4, restarts=3, stop_when_fooled=True),
    PGD(steps=2, start=Level(0.2, 0.8), restarts=2, iterate="best"),
    APGD(steps=6, restarts=2),
    APGD(steps=6, norm="L2", targets=3),
    FAB(steps=4, targets=2, restarts=3),
    FAB(steps=4, targets=2, restarts=3, norm="L2"),
    Square(queries=12, restarts=2),
    Square(queries=12, restarts=2, norm="L2"),
]


def batch() -> tuple[RowByRow, Tensor, Tensor]:
    model, images = RowByRow(), torch.rand(SIZE, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("eps", [0.003, 0.1])
def test_an_images_result_does_not_depend_on_which_others_are_active(attack: Attack, eps: float) -> None:
    model, images, labels = batch()
    whole = attack(model, images, labels, eps, generator=torch.Generator().manual_seed(2))
    for mask in (torch.arange(SIZE) % 3 == 0, torch.arange(SIZE) == 7, torch.arange(SIZE) < 0):
        some = attack_active(attack, model, images, labels, eps, torch.Generator().manual_seed(2), mask)
        assert torch.equal(some[mask], whole[mask])
        assert torch.equal(some[~mask], images[~mask])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_images_result_does_not_depend_on_how_early_others_are_fooled(attack: Attack) -> None:
    model, images, labels = batch()
    sooner = labels.clone()
    sooner[::2] = (sooner[::2] + 1) % 5  # fooled before the first step
    results = [attack(model, images, y, 0.004, generator=torch.Generator().manual_seed(2)) for y in (labels, sooner)]
    assert torch.equal(results[0][1::2], results[1][1::2])


def test_batch_statistics_are_those_of_the_whole_batch(images: Tensor, labels: Tensor) -> None:
    network = small_network().train()
    attack = PGD(steps=3, start=AtImage(), batchnorm="train")
    active = torch.arange(12) < 5
    torch.manual_seed(0)
    whole = attack(network, images, labels, 0.1)
    torch.manual_seed(0)
    some = attack(network, images, labels, 0.1, active=active)
    assert torch.equal(some, torch.where(active.view(-1, 1, 1, 1), whole, images))


@dataclass(frozen=True)
class Darker(Attack):
    """A custom attack without the argument ``active``."""

    norm = "Linf"

    @property
    def name(self) -> str:
        return "darker"

    def __call__(
        self, model: Any, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = torch.rand(images.shape, generator=generator).to(images.dtype)
        return (images - float(eps) * noise).clamp(0, 1)


def test_a_custom_attack_without_active_changes_only_active_images() -> None:
    model, images, labels = batch()
    active = torch.arange(SIZE) % 2 == 0
    named = NamedAttack(Darker(), 0.1)
    whole = named(model, images, labels, torch.Generator().manual_seed(0))
    some = named(model, images, labels, torch.Generator().manual_seed(0), active)
    assert torch.equal(some[active], whole[active])
    assert torch.equal(some[~active], images[~active])
    assert attack_active(Darker(), model, images, labels, 0.1, None, active & False) is images


@pytest.mark.parametrize("attack", [PGD(steps=1), Square(queries=1), Darker()], ids=lambda attack: attack.name)
@pytest.mark.parametrize("active", [torch.ones(SIZE), torch.ones(3, dtype=torch.bool), [True] * SIZE])
def test_a_mask_of_wrong_type_shape_or_dtype_raises(attack: Attack, active: Any) -> None:
    model, images, labels = batch()
    with pytest.raises(ValueError, match=r"active must be .*bool .*of shape \(12,\)"):
        attack_active(attack, model, images, labels, 0.1, None, active)
