"""Several attacks as one: in turn, on the images that are left, each with its own random numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rampart.attacks import PGD, AtImage, Attack, Ensemble
from rampart.evaluation import robust_mask
from rampart.networks import MNISTCNN

CROSS_ENTROPY, MARGIN = PGD(steps=4, start=AtImage()), PGD(steps=4, start=AtImage(), loss="margin")


def test_an_image_is_robust_if_it_is_robust_to_every_attack(images: Tensor) -> None:
    model = MNISTCNN().eval()
    labels, eps = model(images).argmax(1), 0.005
    masks = [robust_mask(model, images, labels, attack, eps) for attack in (CROSS_ENTROPY, MARGIN)]
    together = robust_mask(model, images, labels, Ensemble((CROSS_ENTROPY, MARGIN)), eps)
    assert torch.equal(together, masks[0] & masks[1])
    assert bool(together.any())
    assert not bool(together.all())


class Counting(Attack):
    """Return random images, and record which were attacked."""

    norm = "Linf"
    name = "counting"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, model: Any, images: Tensor, labels: Tensor, eps: Any, generator: Any = None,
                 active: Tensor | None = None) -> Tensor:  # fmt: skip
        assert active is not None
        self.seen.append(active)
        return (images + float(eps) * torch.rand(images.shape, generator=generator)).clamp(0, 1)


def test_each_attack_gets_the_images_that_are_left_and_random_numbers_of_its_own(images: Tensor) -> None:
    model, counting = MNISTCNN().eval(), Counting()
    labels = model(images).argmax(1)
    attack = Ensemble((CROSS_ENTROPY, counting))
    adv = attack(model, images, labels, 0.005, generator=torch.Generator().manual_seed(1))
    assert torch.equal(counting.seen[0], robust_mask(model, images, labels, CROSS_ENTROPY, 0.005))
    # Fewer active images leave the others' results unchanged.
    active = torch.arange(12) % 2 == 0
    some = attack(model, images, labels, 0.005, generator=torch.Generator().manual_seed(1), active=active)
    assert torch.equal(some[active], adv[active])
    assert torch.equal(some[~active], images[~active])


@pytest.mark.parametrize(
    ("attacks", "message"), [((), "got none"), ((PGD(), PGD(norm="L2")), "all of one norm, got norms L2, Linf")]
)
def test_attacks_must_have_one_norm(attacks: tuple[Attack, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(attacks)


def test_settings_describe_every_attack() -> None:
    attack = Ensemble((CROSS_ENTROPY, MARGIN))
    assert attack.name == "PGD-4 + PGD-4"
    assert [each["loss"] for each in attack.settings()["attacks"]] == ["cross_entropy", "margin"]
