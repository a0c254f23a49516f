import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import APGD, FAB, PGD, Attack, Square
from rampart.attacks.validation import check_finite
from rampart.networks import MNISTCNN
from tests.conftest import LinearModel, small_network

ATTACKS = [PGD(steps=2), PGD(steps=2, iterate="best"), APGD(steps=2), FAB(steps=2, targets=1), Square(queries=3)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_or_infinite_logits_raise_with_one_line(value: float) -> None:
    logits = torch.zeros(6, 3)
    check_finite(logits, "on clean images")
    logits[1:3, 0] = value
    with pytest.raises(ValueError, match=r"logits under PGD-40 at eps 0\.3 are NaN or infinite for 2 of 6 images"):
        check_finite(logits, "under PGD-40 at eps 0.3")


class NaNOffTheImages(nn.Module):
    """Correct on the clean images, NaN if any pixel was changed."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, images: Tensor) -> Tensor:
        moved = (images[:, None] - self.images).flatten(2).abs().sum(2).amin(1) > 1e-6
        logits = torch.stack([1 + images.flatten(1).mean(1), images.flatten(1).mean(1)], 1)
        return torch.where(moved[:, None], torch.nan, logits)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_point_where_the_network_returns_nan_is_returned(attack: Attack) -> None:
    images, labels = torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.long)
    model = NaNOffTheImages(images)
    adv = attack(model, images, labels, 0.3)
    assert bool(((adv >= 0) & (adv <= 1) & ((adv - images).abs() <= 0.3)).all())
    # FAB finds no gradient here and returns the images.
    assert bool(model(adv).isnan().any(1).all()) or isinstance(attack, FAB)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x * 1.2, y), ValueError, r"images must be in \[0, 1\] without NaN, got 0 to 1\.2"),
        (lambda x, y: (x * 1.00005, y), ValueError, r"got 0 to 1\.0000\d+"),
        (lambda x, y: (x.numpy(), y), TypeError, "images must be a torch.Tensor, got numpy.ndarray of float32"),
        (lambda x, y: (x.tolist(), y), TypeError, "images must be a torch.Tensor, got list"),
        (lambda x, y: ((x * 255).byte(), y), TypeError, r"got torch\.uint8: divide them by .* images\.float\(\) / 255"),
        (lambda x, y: (x[0, 0, 0], y), ValueError, r"images must have shape \(N, \.\.\.\).* got \(28,\)"),
        (lambda x, y: (x, y.numpy()), TypeError, "labels must be a torch.Tensor, got numpy.ndarray of int64"),
        (lambda x, y: (x, y.float()), TypeError, r"labels must be int64, .* got torch\.float32"),
        (lambda x, y: (x, y[:, None]), ValueError, r"labels must be one for each of 12 images, got shape \(12, 1\)"),
        (lambda x, y: (x, y.to("meta")), ValueError, "labels must be on cpu, where the images are, got meta"),
        (lambda x, y: (x.to("meta"), y.to("meta")), ValueError, "the network is on cpu, the images on meta: move one"),
    ],
)
@pytest.mark.parametrize("attack", [PGD(steps=1), Square(queries=1)], ids=lambda attack: attack.name)
def test_input_of_wrong_type_or_shape_raises_with_one_line(
    attack: Attack, images: Tensor, labels: Tensor, change: Any, error: type[Exception], message: str
) -> None:
    images, labels = change(images, labels)
    with pytest.raises(error, match=message) as caught:
        attack(small_network(), images, labels, 0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("eps", [float("nan"), -0.1, "x", None, torch.rand(3), np.ones(2), [0.1], "1/0"])
def test_a_wrong_eps_raises_with_one_line(eps: Any, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="eps must be") as caught:
        PGD(steps=1)(small_network(), images, labels, eps)
    assert "\n" not in str(caught.value)


def test_a_generator_of_wrong_type_or_device_raises(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
        PGD(steps=1)(MNISTCNN(), images, labels, 0.1, 3)  # type: ignore[arg-type]
    network, meta = MNISTCNN().to("meta"), (images.to("meta"), labels.to("meta"))
    with pytest.raises(ValueError, match="generator must be on meta, where the images are, got one on cpu"):
        PGD(steps=1)(network, *meta, 0.1, torch.Generator())


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_rounding_errors_outside_the_box_are_clipped(attack: Attack, images: Tensor, labels: Tensor) -> None:
    rounded = images * (1 + 2e-7)
    assert rounded.max() > 1
    for eps in (0, 0.1):
        adv = attack(small_network().eval(), rounded, labels, eps)
        assert adv.max() <= 1
        assert (adv - images).abs().max() <= eps + 1e-6


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_have_any_integer_dtype(attack: Attack, dtype: torch.dtype) -> None:
    model, images = LinearModel(torch.ones(1, 4, 4)), torch.rand(3, 1, 4, 4)
    results = [
        attack(model, images, torch.zeros(3, dtype=kind), 0.1, torch.Generator().manual_seed(0))
        for kind in (torch.int64, dtype)
    ]
    assert torch.equal(*results)


def test_the_message_shows_the_digits_of_a_value_just_above_one(images: Tensor, labels: Tensor) -> None:
    images[0, 0, 0, 0] = 1.0001
    with pytest.raises(ValueError, match=re.escape("got 0 to 1.0001:")):
        PGD()(small_network(), images, labels, 0.1)
