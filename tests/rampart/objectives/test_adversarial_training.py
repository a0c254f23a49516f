import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import APGD, FAB, PGD, AtImage, Attack, Level, Square
from rampart.networks import MNISTCNN, ResNet18
from rampart.objectives import AWP, AdversarialTraining, Objective
from tests.conftest import small_network


def test_loss_and_gradient_are_those_of_the_adversarial_images(images: Tensor, labels: Tensor) -> None:
    network, attack = MNISTCNN(), PGD(steps=3, start=AtImage())
    output = AdversarialTraining()(network, images, labels, attack, 0.3)
    adv = attack(network, images, labels, eps=0.3)
    expected = F.cross_entropy(network(adv), labels)
    torch.testing.assert_close(output.loss, expected)
    assert expected > F.cross_entropy(network(images), labels)
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, list(network.parameters())),
        torch.autograd.grad(expected, list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_custom_loss_is_used(images: Tensor, labels: Tensor) -> None:
    network, smooth = MNISTCNN(), nn.CrossEntropyLoss(label_smoothing=0.3)
    output = AdversarialTraining(loss=smooth)(network, images, labels, PGD(), 0)
    torch.testing.assert_close(output.loss, smooth(network(images), labels))


def published_update(
    network: nn.Module, images: Tensor, labels: Tensor, steps: int, step_size: float, eps: float
) -> Tensor:
    """Make one update as published: weights' gradients are cleared before the backward passes of attack steps alone."""
    adv = images.clone()
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        network.zero_grad()
        F.cross_entropy(network(adv), labels).backward()
        assert adv.grad is not None
        adv = (images + (adv + step_size * adv.grad.sign() - images).clamp(-eps, eps)).clamp(0, 1)
    loss = F.cross_entropy(network(adv.detach()), labels)
    loss.backward()
    return loss


def normalised_by_batch() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))


@pytest.mark.parametrize("make", [MNISTCNN, normalised_by_batch])
@pytest.mark.parametrize("steps", [1, 4])
def test_leftover_gradient_equals_that_of_the_published_loop(
    images: Tensor, labels: Tensor, steps: int, make: Callable[[], nn.Module]
) -> None:
    network, images = make().double(), images.double()
    papers, passes = copy.deepcopy(network), 0
    attack = PGD(steps=steps, step_size=0.1, start=AtImage(), batchnorm="train_and_update")

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    network.register_forward_pre_hook(count)
    output = AdversarialTraining(leftover_gradient=True)(network, images, labels, attack, 0.3)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    output.loss.backward()
    loss = published_update(papers, images, labels, steps, 0.1, 0.3)

    torch.testing.assert_close(output.loss, loss)
    for ours, theirs in zip(network.parameters(), papers.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for buffer, published in zip(network.buffers(), papers.buffers(), strict=True):
        torch.testing.assert_close(buffer, published)
    assert passes == steps + 1

    plain = AdversarialTraining()(papers, images, labels, attack, 0.3)
    gradients = torch.autograd.grad(plain.loss, list(papers.parameters()))
    with_leftover = next(papers.parameters()).grad
    assert with_leftover is not None
    assert not torch.allclose(gradients[0], with_leftover)


@pytest.mark.parametrize(("mode", "updates"), [("eval", 1), ("train", 1), ("train_and_update", 4)])
def test_leftover_gradient_needs_no_further_update_of_statistics(mode: Any, updates: int) -> None:
    network = ResNet18()
    attack = PGD(steps=3, batchnorm=mode)
    objective = AdversarialTraining(leftover_gradient=True)
    objective(network, torch.rand(2, 3, 32, 32), torch.arange(2), attack, 8 / 255).loss.backward()
    assert network.bn1.num_batches_tracked == updates
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=3),
        PGD(norm="L2", steps=3),
        PGD(steps="paper", relative_step_size=0.5),
        PGD(steps=2, start=Level(0.5, 0.5), step_size=0.05),
    ],
)
def test_leftover_gradient_does_not_change_the_attack(images: Tensor, labels: Tensor, attack: PGD) -> None:
    network = small_network()
    results = [
        AdversarialTraining(leftover_gradient=on)(
            network.eval(), images, labels, attack, 0.3, torch.Generator().manual_seed(0)
        )
        for on in (False, True)
    ]
    assert torch.equal(results[0].logits, results[1].logits)
    assert torch.equal(results[0].loss, results[1].loss)
    results[1].loss.backward()
    assert network[0].bias.grad is None  # frozen before and after
    assert not network[0].bias.requires_grad


def test_leftover_gradient_is_zero_without_steps(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    paper = PGD(steps="paper", step_size=0.01)
    for eps in (0.0, 0.001):
        outputs = [
            AdversarialTraining(leftover_gradient=on)(
                network, images, labels, paper, eps, torch.Generator().manual_seed(0)
            )
            for on in (False, True)
        ]
        grads = [torch.autograd.grad(o.loss, network.fc2.weight)[0] for o in outputs]
        torch.testing.assert_close(*grads)


def test_leftover_gradient_needs_a_single_run(images: Tensor, labels: Tensor) -> None:
    objective = AdversarialTraining(leftover_gradient=True)
    for attack in (
        PGD(restarts=2),
        PGD(iterate="best"),
        PGD(step_schedule="linear"),
        PGD(stop_when_fooled=True),
    ):
        with pytest.raises(TypeError, match="one run, constant steps, its last iterate"):
            objective(MNISTCNN(), images, labels, attack, 0.1)


@pytest.mark.parametrize("objective", [AdversarialTraining(), AWP()])
@pytest.mark.parametrize(("mode", "updates"), [("eval", 1), ("train", 1), ("train_and_update", 1 + 3)])
def test_batchnorm_mode_of_the_attack_decides_the_updates_of_a_training_step(
    mode: Any, updates: int, objective: Objective
) -> None:
    network, images = ResNet18(width=4), torch.rand(4, 3, 32, 32)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.5
    expected = copy.deepcopy(network)
    attack = PGD(steps=3, start=AtImage(), batchnorm=mode)
    adv = attack(copy.deepcopy(network), images, torch.arange(4), 8 / 255)
    objective(network, images, torch.arange(4), attack, 8 / 255).loss.backward()
    assert {int(value) for name, value in network.named_buffers() if name.endswith("tracked")} == {updates}
    assert all(module.training for module in network.modules())
    if mode != "train_and_update":  # The one pass over the adversarial images, which depend on the mode.
        expected(adv)
        torch.testing.assert_close(dict(network.named_buffers()), dict(expected.named_buffers()))


@pytest.mark.parametrize("attack", [APGD(steps=3), FAB(steps=2), Square(queries=3)])
def test_attacks_without_a_batchnorm_mode_leave_statistics(attack: Attack) -> None:
    network = ResNet18(width=4)
    AdversarialTraining()(network, torch.rand(4, 3, 32, 32), torch.arange(4), attack, 8 / 255).loss.backward()
    assert network.bn1.num_batches_tracked == 1
