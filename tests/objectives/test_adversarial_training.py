import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD
from networks import MNISTCNN
from objectives import AdversarialTraining


def test_loss_and_gradient_are_those_at_the_attacks_images(images: Tensor, labels: Tensor) -> None:
    network, attack = MNISTCNN(), PGD(steps=3, random_start=False)
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


def test_the_loss_can_be_chosen(images: Tensor, labels: Tensor) -> None:
    network, smooth = MNISTCNN(), nn.CrossEntropyLoss(label_smoothing=0.3)
    output = AdversarialTraining(loss=smooth)(network, images, labels, PGD(), 0)
    torch.testing.assert_close(output.loss, smooth(network(images), labels))


@pytest.mark.parametrize("steps", [1, 4])
def test_leftover_gradient_is_that_of_the_published_loop(images: Tensor, labels: Tensor, steps: int) -> None:
    network, eps, step_size = MNISTCNN().double(), 0.3, 0.1
    images = images.double()
    attack = PGD(steps=steps, step_size=step_size, random_start=False)
    objective = AdversarialTraining(leftover_gradient=True)
    output = objective(network, images, labels, attack, eps)
    network.zero_grad()
    output.loss.backward()
    ours = [p.grad.clone() for p in network.parameters() if p.grad is not None]

    # The published order: weights' gradients cleared before each attack step's backward, and not before the update's.
    adv = images.clone()
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        network.zero_grad()
        F.cross_entropy(network(adv), labels).backward()
        assert adv.grad is not None
        adv = (images + (adv + step_size * adv.grad.sign() - images).clamp(-eps, eps)).clamp(0, 1)
    loss = F.cross_entropy(network(adv.detach()), labels)
    loss.backward()
    published = [p.grad for p in network.parameters()]

    torch.testing.assert_close(output.loss, loss)
    for a, b in zip(ours, published, strict=True):
        torch.testing.assert_close(a, b)
    plain = AdversarialTraining()(network, images, labels, attack, eps)
    (without,) = torch.autograd.grad(plain.loss, network.fc2.weight)
    assert published[6] is not None
    assert not torch.allclose(without, published[6])


def test_leftover_gradient_vanishes_without_steps(images: Tensor, labels: Tensor) -> None:
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
