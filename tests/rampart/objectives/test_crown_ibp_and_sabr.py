import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD, Attack
from rampart.bounds import box_logits, crown_worst_logits, interval_logits
from rampart.objectives import CROWNIBP, IBP, SABR
from tests.rampart.objectives.test_ibp import ATTACK, batch, small_cnn


def test_worst_logits_move_from_crown_ibp_to_ibp_with_eps() -> None:
    network, (images, labels) = small_cnn(), batch()
    objective = CROWNIBP(target_eps=0.2)
    for eps, beta in {0.0: 0.0, 0.01: 0.95, 0.1: 0.5, 0.2: 0.0, 0.3: 0.0}.items():
        output = objective(network, images, labels, ATTACK, eps)
        interval = interval_logits(network, images, eps or 1e-6, images, trace=True)
        expected = beta * crown_worst_logits(interval, labels) + (1 - beta) * interval.worst_logits(labels)
        torch.testing.assert_close(output.logits, expected)
        torch.testing.assert_close(output.parts["adv_loss"], F.cross_entropy(expected, labels))
        if beta == 0:
            torch.testing.assert_close(output.loss, IBP(target_eps=0.2)(network, images, labels, ATTACK, eps).loss)


def test_crown_weight_can_be_constant() -> None:
    network, (images, labels) = small_cnn(), batch()
    objective = CROWNIBP(target_eps=0.2, crown_weight_end=1.0, regularisation=0)
    output = objective(network, images, labels, ATTACK, 0.2)
    interval = interval_logits(network, images, 0.2, images, trace=True)
    torch.testing.assert_close(output.loss, F.cross_entropy(crown_worst_logits(interval, labels), labels))


@pytest.mark.parametrize("objective", [CROWNIBP(0.2), SABR(0.2, clean_weight_start=0.3, clean_weight_end=0.3)])
def test_gradients_are_those_of_finite_differences(objective: IBP) -> None:
    network, (images, labels) = small_cnn(), batch(6)
    attack = PGD(steps=0)

    def evaluate() -> Tensor:
        return objective(network, images, labels, attack, 0.05, torch.Generator().manual_seed(0)).loss

    gradients = torch.autograd.grad(evaluate(), list(network.parameters()))
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        step, values = 1e-6 * torch.randn_like(weight), []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step)
                values.append(evaluate())
                weight.sub_(sign * step)
        torch.testing.assert_close((values[0] - values[1]) / 2, (gradient * step).sum(), rtol=1e-3, atol=1e-10)


class Brightest(Attack):
    """Return the brightest image of the ball."""

    norm = "Linf"
    name = "brightest"

    def __call__(self, model: Any, images: Tensor, labels: Tensor, eps: Any, generator: Any = None) -> Tensor:
        return torch.clamp(images + eps, max=1)


def test_the_small_box_lies_in_the_ball_around_the_attack() -> None:
    network, (images, labels) = small_cnn(), batch()
    images[:, :, :2] = images[:, :, :2].round()  # black and white pixels, whose ball has half the width
    lower, upper = (images - 0.1).clamp(min=0), (images + 0.1).clamp(max=1)
    for ratio in (0.0, 0.25, 1.0):
        objective = SABR(target_eps=0.1, box_ratio=ratio)
        output = objective(network, images, labels, Brightest(), 0.1)
        # The largest image that the box may contain is that of the attack.
        expected = box_logits(network, upper - ratio * (upper - lower), upper, images)
        torch.testing.assert_close(output.logits, expected.worst_logits(labels))
        torch.testing.assert_close(output.loss, output.parts["adv_loss"])
    torch.testing.assert_close(output.loss, IBP(target_eps=0.1)(network, images, labels, ATTACK, 0.1).loss)


def test_statistics_are_updated_once_by_the_clean_batch() -> None:
    for objective in (CROWNIBP(0.2), SABR(0.2)):
        network, (images, labels) = small_cnn(), batch()
        objective(network, images, labels, ATTACK, 0.1)
        assert network[1].num_batches_tracked == 1
        expected = 0.1 * network[0](images).mean((0, 2, 3))
        torch.testing.assert_close(network[1].running_mean, expected.detach())


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (CROWNIBP, {"crown_weight_start": 2}, r"crown_weight_start must be in \[0, 1\], got 2"),
        (CROWNIBP, {"crown_weight_end": math.nan}, r"crown_weight_end must be in \[0, 1\], got nan"),
        (CROWNIBP, {"l1": -1}, "l1 must be at least 0, got -1"),
        (SABR, {"box_ratio": 1.1}, r"box_ratio must be in \[0, 1\], got 1.1"),
        (SABR, {"tau": 0}, "tau must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_raise(objective: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(0.4, **settings)


def test_other_norms_raise() -> None:
    for objective in (CROWNIBP(0.4), SABR(0.4)):
        with pytest.raises(ValueError, match=f"{type(objective).__name__} bounds the l-inf ball, got .* norm L2"):
            objective.check(PGD(norm="L2"), nn.Flatten())
