import math

import pytest
import torch
from torch import Tensor

from rampart.attacks import PGD
from rampart.collapse import read_signs, sum_alignment, sum_signs
from tests.conftest import LinearModel


def measure(probabilities: list[list[float]], labels: list[int]) -> Tensor:
    return sum_signs(torch.tensor(probabilities, dtype=torch.float64).log(), torch.tensor(labels))


def test_signs_equal_hand_computed_values() -> None:
    sums = sum_signs(
        torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0], [0.0, 0.0], [0.0, 0.0]]),
        torch.tensor([1, 0, 0, 0]),
        grad_norm=torch.tensor(2.5),
        alignment=torch.tensor([1.5, 3.0]),
    )
    signs = read_signs(sums.tolist())
    certain = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert signs.images == 4
    assert signs.loss == pytest.approx((-2 * math.log(0.75) + 2 * math.log(2)) / 4)
    assert signs.label_entropy == pytest.approx(certain)
    assert signs.information == pytest.approx(math.log(2) - (2 * certain + 2 * math.log(2)) / 4)
    assert signs.label_counts == (3, 1)
    assert (signs.top_class, signs.top_share, signs.accuracy) == (0, 0.75, 1.0)
    assert signs.spread == pytest.approx(math.log(3) / 2 / math.sqrt(2))
    assert signs.grad_norm == 2.5
    assert signs.alignment == 0.5
    assert signs.finite


def test_sums_of_two_parts_are_those_of_the_whole() -> None:
    logits, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 5
    parts = sum_signs(logits[:4], labels[:4]) + sum_signs(logits[4:], labels[4:])
    torch.testing.assert_close(parts, sum_signs(logits, labels))
    assert parts.shape == (9 + 5 * 5,)


def test_a_constant_output_has_no_information_and_at_least_the_loss_of_the_label_entropy() -> None:
    signs = read_signs(measure([[0.7, 0.2, 0.1]] * 10, [0] * 7 + [1] * 2 + [2]).tolist())
    assert signs.information == pytest.approx(0, abs=1e-12)
    assert signs.spread == pytest.approx(0, abs=1e-7)
    assert signs.loss == pytest.approx(signs.label_entropy)
    assert signs.top_share == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_flagged(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    assert not read_signs(sum_signs(logits, torch.tensor([0, 1, 2])).tolist()).finite


def test_alignment_is_one_where_the_loss_is_linear(images: Tensor) -> None:
    model = LinearModel(0.01 * torch.randn(1, 1, 28, 28))
    labels = torch.arange(12) % 2
    adv = PGD(steps=1, relative_step_size=1.0)(model, images, labels, eps=0.1).requires_grad_()
    torch.nn.functional.cross_entropy(model(adv), labels).mul(1e-30).backward()
    assert adv.grad is not None
    aligned, counted = sum_alignment(images, adv, adv.grad, "Linf").tolist()
    assert counted == 12
    assert aligned == pytest.approx(12)
    assert sum_alignment(images, adv, -adv.grad, "Linf").tolist() == [pytest.approx(-aligned), 12]


def test_alignment_in_l2_is_the_cosine() -> None:
    clean, delta = torch.zeros(2, 1, 1, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    grad = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
    assert sum_alignment(clean, clean + delta, grad, "L2").tolist() == [pytest.approx(0.6), 1]


def test_alignment_leaves_out_pixels_without_a_change() -> None:
    clean, adv = torch.zeros(1, 1, 1, 3), torch.tensor([0.1, 0.1, 0.0]).view(1, 1, 1, 3)
    grad = torch.tensor([2.0, -1.0, 5.0]).view(1, 1, 1, 3)
    assert sum_alignment(clean, adv, grad, "Linf").tolist() == [pytest.approx(1 / 3), 1]
    assert sum_alignment(clean, clean, grad, "Linf").tolist() == [0, 0]
