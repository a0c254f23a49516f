import torch
from pyautoattack.fab_projections import projection_linf
from torch import Tensor, nn

from attacks import FAB
from attacks.fab import _onto_boundary
from networks import MNISTCNN


def by_bisection(start: Tensor, at: Tensor, lead: Tensor, grad: Tensor) -> Tensor:
    """The same change for one point, by halving the interval of its amount."""
    gap = -(lead + (grad * (start - at)).sum())
    direction = grad.sign() * (1 if gap >= 0 else -1)

    def change(amount: float) -> Tensor:
        return (start + amount * direction).clamp(0, 1) - start

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (grad * change(middle)).sum().abs() >= gap.abs() else (middle, high)
    return change(high)


def test_the_step_onto_the_boundary_is_the_smallest_inside_the_box() -> None:
    start, at, grad = torch.rand(200, 1, 5, 5).double(), torch.rand(200, 1, 5, 5).double(), torch.randn(200, 1, 5, 5)
    start[:50] = start[:50].round()
    grad[50:80, :, 0] = 0
    lead = 3 * torch.randn(200).double()
    changes = _onto_boundary(start, at, lead, grad.double())
    for i in range(200):
        expected = by_bisection(start[i], at[i], lead[i], grad[i].double())
        torch.testing.assert_close(changes[i], expected, atol=1e-9, rtol=0)


def test_a_gap_that_no_change_closes_leads_to_the_walls() -> None:
    start, grad = torch.rand(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    change = _onto_boundary(start, start, torch.tensor([-100.0]), grad)
    torch.testing.assert_close(start + change, torch.ones_like(start))


def test_an_image_does_not_depend_on_the_rest_of_the_batch(images: Tensor) -> None:
    model = MNISTCNN().double()
    images = images.double()
    labels = model(images).argmax(1)
    attack = FAB(steps=10, targets=2)
    whole = attack(model, images, labels, eps=0.02)
    alone = torch.cat([attack(model, images[i : i + 1], labels[i : i + 1], eps=0.02) for i in range(len(images))])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-7)


def test_untrained_networks_are_fooled_near_the_boundary(images: Tensor) -> None:
    model = MNISTCNN()
    labels = model(images).argmax(1)
    assert (model(FAB(steps=30)(model, images, labels, eps=0.1)).argmax(1) != labels).all()


def test_the_step_is_the_published_one() -> None:
    start, grad, lead = torch.rand(99, 49).double(), torch.randn(99, 49).double(), torch.randn(99).double()
    published = projection_linf(start, grad, (grad * start).sum(1) - lead)
    torch.testing.assert_close(_onto_boundary(start, start, lead, grad), published, rtol=0, atol=1e-12)


class OnceNaN(nn.Module):
    """Answers its second question with NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.asked, self.finite = MNISTCNN(), 0, True

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        self.finite &= bool(images.isfinite().all())
        logits: Tensor = self.network(images)
        return logits * torch.nan if self.asked == 3 else logits


def test_an_answer_that_is_no_number_does_not_reach_the_images(images: Tensor) -> None:
    model = OnceNaN()
    labels = model.network(images).argmax(1)
    adv = FAB(steps=30)(model, images, labels, eps=0.1)
    assert model.finite
    assert (model.network(adv).argmax(1) != labels).any()
