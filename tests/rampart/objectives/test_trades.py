import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD, Attack
from rampart.attacks.context import attack_context
from rampart.networks import MNISTCNN, ResNet18
from rampart.objectives import TRADES
from tests.rampart.objectives.attacks import OneOf

PGD_5 = PGD(steps=5, step_size=0.05)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normalised_by_batch() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    network(torch.rand(8, 1, 28, 28))  # changes the running statistics from their initial values
    return network


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


def published(network: nn.Module, images: Tensor, labels: Tensor, start: Tensor, eps: float, beta: float) -> Tensor:
    """Return the loss of the authors' loop, from a given start."""
    sum_of_kl = nn.KLDivLoss(reduction="sum")
    adv = start
    network.eval()
    for _ in range(5):
        adv = adv.detach().requires_grad_()
        kl = sum_of_kl(F.log_softmax(network(adv), 1), F.softmax(network(images), 1))
        (grad,) = torch.autograd.grad(kl, adv)
        adv = adv.detach() + 0.05 * grad.sign()
        adv = torch.min(torch.max(adv, images - eps), images + eps).clamp(0, 1)
    network.train()
    natural = network(images)
    robust = sum_of_kl(F.log_softmax(network(adv), 1), F.softmax(natural, 1)) / len(images)
    loss: Tensor = F.cross_entropy(natural, labels) + beta * robust
    return loss


@pytest.mark.parametrize("make", [MNISTCNN, normalised_by_batch, with_dropout])
def test_loss_gradients_and_statistics_equal_the_published_ones(
    images: Tensor, labels: Tensor, make: Callable[[], nn.Module]
) -> None:
    network, images = make().double(), images.double()
    papers = copy.deepcopy(network)
    start = PGD(steps=0)(network, images, labels, 0.3, generator=generator())
    torch.manual_seed(5)  # for dropout
    output = TRADES(beta=6)(network, images, labels, PGD_5, 0.3, generator())
    torch.manual_seed(5)
    expected = published(papers, images, labels, start, 0.3, 6)
    for ours, theirs in zip(network.buffers(), papers.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(output.loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, list(network.parameters())),
        torch.autograd.grad(expected, list(papers.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(output.parts["clean_loss"] + 6 * output.parts["kl"], output.loss)
    assert output.parts["kl"] > 0


@dataclass(frozen=True)
class RecordLoss(PGD):
    """An attack that returns the clean images and records its loss there."""

    seen: ClassVar[list[float]] = []

    def __call__(self, model: Any, images: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
        assert callable(self.loss)
        with attack_context(model, self.batchnorm, "cpu"):
            self.seen.append(self.loss(model(images), labels).abs().max().item())
        return images


@pytest.mark.parametrize("mode", ["eval", "train", "train_and_update"])
@pytest.mark.parametrize("make", [ResNet18, lambda: nn.Sequential(nn.Dropout(0.5), MNISTCNN())])
def test_the_attacks_loss_is_zero_at_the_clean_images(make: Callable[[], nn.Module], mode: Any) -> None:
    network, labels = make(), torch.arange(4)
    images = torch.rand(4, 3, 32, 32) if isinstance(network, ResNet18) else torch.rand(4, 1, 28, 28)
    network(images)
    TRADES()(network, images, labels, RecordLoss(batchnorm=mode), 8 / 255)
    assert RecordLoss.seen.pop() < 1e-6


def test_only_the_two_passes_of_the_training_loss_update_statistics() -> None:
    network = ResNet18()
    TRADES()(network, torch.rand(4, 3, 32, 32), torch.arange(4), PGD(steps=2), 8 / 255)
    assert network.bn1.num_batches_tracked == 2


@pytest.mark.parametrize(("make", "passes"), [(MNISTCNN, 5 + 2), (normalised_by_batch, 5 + 3)])
def test_the_attacks_reference_costs_a_pass_only_if_modes_differ(
    images: Tensor, labels: Tensor, make: Callable[[], Any], passes: int
) -> None:
    network, count = make(), 0
    forward = network.forward

    def counting(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        result: Tensor = forward(x)
        return result

    network.forward = counting
    TRADES()(network, images, labels, PGD_5, 0.3)
    assert count == passes


def test_each_of_several_attacks_maximises_kl(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    one = TRADES()(network, images, labels, PGD(steps=0), 0.3, generator()).parts["kl"]
    mixed = OneOf((PGD(steps=8), PGD(steps=9)))
    assert TRADES()(network, images, labels, mixed, 0.3, generator()).parts["kl"] > 2 * one


def test_at_eps_0_the_loss_is_the_clean_loss(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    output = TRADES()(network, images, labels, PGD_5, 0)
    torch.testing.assert_close(output.loss, F.cross_entropy(network(images), labels))


@pytest.mark.parametrize("beta", [-1, float("nan")])
def test_a_negative_beta_raises(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be at least 0, got"):
        TRADES(beta=beta)


def test_an_attack_without_a_loss_raises(images: Tensor, labels: Tensor) -> None:
    class Noise(Attack):
        norm = "Linf"
        name = "noise"

        def __call__(self, *_: Any, **__: Any) -> Tensor:
            raise AssertionError

    with pytest.raises(TypeError, match="loss it can replace"):
        TRADES()(MNISTCNN(), images, labels, Noise(), 0.3)


def test_labels_outside_the_classes_raise(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must be in"):
        TRADES()(MNISTCNN(), images, labels + 5, PGD_5, 0.3)
