from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.fab_projections import projection_l2, projection_linf
from scipy.optimize import minimize
from torch import Tensor, nn

from rampart.attacks import FAB, NormName
from rampart.attacks.fab import _step_to_boundary
from rampart.networks import MNISTCNN


def by_bisection(start: Tensor, at: Tensor, difference: Tensor, grad: Tensor, norm: NormName) -> Tensor:
    """Compute the change of one point by bisection of its amount."""
    gap = -(difference + (grad * (start - at)).sum())
    direction = (grad.sign() if norm == "Linf" else grad) * (1 if gap >= 0 else -1)

    def change(amount: float) -> Tensor:
        return (start + amount * direction).clamp(0, 1) - start

    low, high = 0.0, 1.0
    if norm == "L2":
        high = 1 / grad.abs()[grad != 0].min().item()  # all pixels are at their bounds
    for _ in range(90):
        middle = (low + high) / 2
        low, high = (low, middle) if (grad * change(middle)).sum().abs() >= gap.abs() else (middle, high)
    return change(high)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("scale", [1, 1e-30])
def test_the_step_onto_the_boundary_is_the_smallest_inside_the_box(norm: NormName, scale: float) -> None:
    start, at, grad = torch.rand(200, 1, 5, 5).double(), torch.rand(200, 1, 5, 5).double(), torch.randn(200, 1, 5, 5)
    start[:50] = start[:50].round()
    grad[50:80, :, 0] = 0
    difference, grad = 3 * torch.randn(200).double(), grad.double()
    changes = _step_to_boundary(start, at, scale * difference, scale * grad, norm)
    for i in range(0, 200, 5):
        expected = by_bisection(start[i], at[i], difference[i], grad[i], norm)
        torch.testing.assert_close(changes[i], expected, atol=1e-9, rtol=0)


def test_no_change_is_shorter_than_the_step_in_l2() -> None:
    """Compared with a general solver of quadratic programs."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        start, grad = generator.random(6), generator.standard_normal(6)
        difference = -0.7 * np.maximum(grad * (1 - start), -grad * start).sum()  # can be closed inside the box
        point, slopes = torch.tensor(start[None]), torch.tensor(grad[None])
        step = _step_to_boundary(point, point, torch.tensor([difference]), slopes, "L2")[0].numpy()
        on_the_boundary = {
            "type": "eq",
            "fun": lambda change, difference=difference, grad=grad: difference + grad @ change,
        }
        bounds = list(zip(-start, 1 - start, strict=True))
        best = minimize(
            lambda change: change @ change, 0 * start, bounds=bounds, constraints=[on_the_boundary], tol=1e-14
        )
        np.testing.assert_allclose(step, best.x, atol=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gap_that_cannot_be_closed_moves_all_pixels_to_their_bounds(norm: NormName) -> None:
    start, grad = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    grad[1] = 0  # no point is better than the image
    change = _step_to_boundary(start, start, torch.tensor([-100.0, -100.0]), grad, norm)
    torch.testing.assert_close(start[0] + change[0], torch.ones(1, 3, 3))
    assert not change[1].any()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.02), ("L2", 0.3)])
def test_an_image_does_not_depend_on_the_rest_of_the_batch(images: Tensor, norm: NormName, eps: float) -> None:
    model = MNISTCNN().double()
    images = images.double()
    labels = model(images).argmax(1)
    attack = FAB(steps=10, targets=2, norm=norm)
    whole = attack(model, images, labels, eps)
    alone = torch.cat([attack(model, images[i : i + 1], labels[i : i + 1], eps) for i in range(len(images))])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 1.5)])
def test_untrained_networks_are_fooled_near_the_boundary(images: Tensor, norm: NormName, eps: float) -> None:
    model = MNISTCNN()
    labels = model(images).argmax(1)
    assert (model(FAB(steps=30, norm=norm)(model, images, labels, eps)).argmax(1) != labels).all()


@pytest.mark.parametrize(("norm", "published"), [("Linf", projection_linf), ("L2", projection_l2)])
def test_the_step_equals_that_of_the_published_code(norm: NormName, published: Any) -> None:
    start, grad, difference = torch.rand(99, 49).double(), torch.randn(99, 49).double(), torch.randn(99).double()
    expected = published(start, grad, (grad * start).sum(1) - difference)
    torch.testing.assert_close(_step_to_boundary(start, start, difference, grad, norm), expected, rtol=0, atol=1e-12)


def test_name_has_norm_and_restarts() -> None:
    assert [attack.name for attack in (FAB(), FAB(restarts=3), FAB(norm="L2"))] == ["FAB-T", "FAB-Tx3", "FAB-L2-T"]
    with pytest.raises(ValueError, match="norm must be one of Linf, L2, got 'L1'"):
        FAB(norm="L1")  # type: ignore[arg-type]


class OnceNaN(nn.Module):
    """Returns NaN in its third forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.passes, self.finite = MNISTCNN(), 0, True

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        self.finite &= bool(images.isfinite().all())
        logits: Tensor = self.network(images)
        return logits * torch.nan if self.passes == 3 else logits


def test_nan_logits_do_not_put_nan_into_the_images(images: Tensor) -> None:
    model = OnceNaN()
    labels = model.network(images).argmax(1)
    adv = FAB(steps=30)(model, images, labels, eps=0.1)
    assert model.finite
    assert (model.network(adv).argmax(1) != labels).any()
