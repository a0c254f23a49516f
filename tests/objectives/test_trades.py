from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD, Attack
from networks import MNISTCNN
from objectives import TRADES

PGD_5 = PGD(steps=5, step_size=0.05)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def published(network: nn.Module, images: Tensor, labels: Tensor, start: Tensor, eps: float, beta: float) -> Tensor:
    """The authors' loop and loss, from a given start."""
    sum_of_kl = nn.KLDivLoss(reduction="sum")
    adv = start
    for _ in range(5):
        adv = adv.detach().requires_grad_()
        kl = sum_of_kl(F.log_softmax(network(adv), 1), F.softmax(network(images), 1))
        (grad,) = torch.autograd.grad(kl, adv)
        adv = adv.detach() + 0.05 * grad.sign()
        adv = torch.min(torch.max(adv, images - eps), images + eps).clamp(0, 1)
    natural = network(images)
    robust = sum_of_kl(F.log_softmax(network(adv), 1), F.softmax(natural, 1)) / len(images)
    loss: Tensor = F.cross_entropy(natural, labels) + beta * robust
    return loss


def test_loss_and_gradients_are_the_published_ones(images: Tensor, labels: Tensor) -> None:
    network, images = MNISTCNN().double(), images.double()
    start = PGD(steps=0)(network, images, labels, 0.3, generator=generator())
    output = TRADES(beta=6)(network, images, labels, PGD_5, 0.3, generator())
    expected = published(network, images, labels, start, 0.3, 6)
    torch.testing.assert_close(output.loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, list(network.parameters())),
        torch.autograd.grad(expected, list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(output.parts["clean_loss"] + 6 * output.parts["kl"], output.loss)
    assert output.parts["kl"] > 0


def test_at_eps_0_what_is_left_is_the_clean_loss(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    output = TRADES()(network, images, labels, PGD_5, 0)
    torch.testing.assert_close(output.loss, F.cross_entropy(network(images), labels))


@pytest.mark.parametrize("beta", [-1, float("nan")])
def test_a_negative_beta_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be at least 0, got"):
        TRADES(beta=beta)


def test_an_attack_without_a_loss_is_refused(images: Tensor, labels: Tensor) -> None:
    class Noise(Attack):
        norm = "Linf"
        name = "noise"

        def __call__(self, *_: Any, **__: Any) -> Tensor:
            raise AssertionError

    with pytest.raises(TypeError, match="loss it can replace"):
        TRADES()(MNISTCNN(), images, labels, Noise(), 0.3)


def test_labels_that_are_no_classes_are_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must be in"):
        TRADES()(MNISTCNN(), images, labels + 5, PGD_5, 0.3)
