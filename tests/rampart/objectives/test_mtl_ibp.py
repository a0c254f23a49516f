import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.bounds import interval_logits
from rampart.networks import MNISTCNN, ResNet18
from rampart.objectives import MTLIBP, AdversarialTraining
from tests.rampart.objectives.test_ibp import batch, small_cnn

PGD_5 = PGD(steps=5, step_size=0.05)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def bound_by_hand(network: MNISTCNN, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return the IBP loss layer by layer, as usually written, with elision: subtract rows of the last layer first."""
    lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    for layer in (network.conv1, network.conv2, network.fc1):
        if layer is network.fc1:
            lower, upper = lower.flatten(1), upper.flatten(1)
        positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        apply = F.linear if isinstance(layer, nn.Linear) else F.conv2d
        lower, upper = (
            apply(lower, positive, layer.bias) + apply(upper, negative),
            apply(upper, positive, layer.bias) + apply(lower, negative),
        )
        if layer is not network.fc1:
            lower, upper = F.max_pool2d(lower, 2), F.max_pool2d(upper, 2)
        lower, upper = F.relu(lower), F.relu(upper)
    worst = []
    for low, high, label in zip(lower, upper, labels, strict=True):
        rows = network.fc2.weight - network.fc2.weight[label]
        shift = network.fc2.bias - network.fc2.bias[label]
        worst.append(rows.clamp(min=0) @ high + rows.clamp(max=0) @ low + shift)
    return F.cross_entropy(torch.stack(worst), labels)


def test_the_loss_is_a_mixture_of_adversarial_loss_and_bound(images: Tensor, labels: Tensor) -> None:
    network, images = MNISTCNN().double(), images.double()
    adversarial = AdversarialTraining()(network, images, labels, PGD_5, 0.3, generator()).loss
    bound = bound_by_hand(network, images, labels, 0.3)
    output = MTLIBP(weight=0.1)(network, images, labels, PGD_5, 0.3, generator())
    expected = 0.9 * adversarial + 0.1 * bound
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.parts["bound_loss"], bound)
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, list(network.parameters())),
        torch.autograd.grad(expected, list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_bound_exceeds_the_adversarial_loss(images: Tensor, labels: Tensor) -> None:
    output = MTLIBP()(MNISTCNN(), images, labels, PGD(steps=20), 0.2)
    assert output.parts["bound_loss"] > output.parts["adv_loss"]


def test_at_eps_0_both_parts_are_the_clean_loss(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    output = MTLIBP(weight=0.5)(network, images, labels, PGD_5, 0)
    torch.testing.assert_close(output.loss, F.cross_entropy(network(images), labels))


def test_bound_and_attack_use_the_same_network_if_batchnorm_and_dropout_are_frozen() -> None:
    network, images, labels = (
        nn.Sequential(nn.Dropout2d(), ResNet18(width=8)),
        torch.rand(2, 3, 32, 32),
        torch.arange(2),
    )
    network(images)  # changes the statistics from their initial values
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    before = {name: value.clone() for name, value in network.named_buffers()}
    objective = MTLIBP(weight=0.5)
    objective.check(PGD_5, network)
    parts = objective(network, images, labels, PGD(steps=1), 0).parts
    torch.testing.assert_close(parts["bound_loss"], parts["adv_loss"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network[0].train()
    with pytest.raises(TypeError, match=r"dropout in train mode.*\(in layer 0, Dropout2d\)"):
        objective(network, images, labels, PGD(steps=1), 0)
    with pytest.raises(TypeError, match=r"dropout in train mode.*\(in layer 0, Dropout2d\)"):
        objective.check(PGD_5, network)


def test_batchnorm_bounds_by_the_statistics_of_the_adversarial_images() -> None:
    network, (images, labels) = small_cnn(), batch()
    by_hand = copy.deepcopy(network)
    output = MTLIBP(weight=0.25, l1=1e-3)(network, images, labels, PGD_5, 0.1, generator())
    adv = PGD_5(by_hand, images, labels, 0.1, generator=generator())
    interval = interval_logits(by_hand, images, 0.1, clean=adv)
    assert interval.clean is not None
    logits = interval.clean
    torch.testing.assert_close(output.logits, logits)
    weights = sum(weight.abs().sum() for weight in by_hand.parameters() if weight.ndim > 1)
    bound = F.cross_entropy(interval.worst_logits(labels), labels)
    torch.testing.assert_close(output.loss, 0.75 * F.cross_entropy(logits, labels) + 0.25 * bound + 1e-3 * weights)
    assert output.parts["bound_loss"] > output.parts["adv_loss"]
    torch.testing.assert_close(network.state_dict(), by_hand.state_dict())
    assert network[1].num_batches_tracked == 1


def test_a_target_eps_adds_the_regularisers_up_to_it() -> None:
    network, (images, labels) = small_cnn(), batch()
    for eps, weight in {0.0: 0.5, 0.1: 0.25, 0.2: 0.0, 0.3: 0.0}.items():
        plain = MTLIBP(weight=0.25)(copy.deepcopy(network), images, labels, PGD_5, eps, generator())
        output = MTLIBP(weight=0.25, target_eps=0.2)(network, images, labels, PGD_5, eps, generator())
        regulariser = output.parts["regulariser"]
        assert (regulariser > 0) == (weight > 0)
        torch.testing.assert_close(output.loss, plain.loss + weight * regulariser, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1": -1}, "l1 must be at least 0, got -1"),
        ({"regularisation": -1}, "regularisation must be at least 0, got -1"),
        ({"target_eps": 0}, "target_eps must be above 0, the end of the ramp"),
    ],
)
def test_settings_out_of_range_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MTLIBP(**settings)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_raises(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], got"):
        MTLIBP(weight=weight)


def test_another_norm_raises(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="l-inf ball, got an attack with the norm L2"):
        MTLIBP()(MNISTCNN(), images, labels, PGD(norm="L2"), 0.3)


def test_weight_0_is_adversarial_training(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    plain = AdversarialTraining()(network, images, labels, PGD_5, 0.3, generator())
    torch.testing.assert_close(MTLIBP(weight=0)(network, images, labels, PGD_5, 0.3, generator()).loss, plain.loss)


def test_a_network_without_a_bound_raises(images: Tensor, labels: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(784, 10))
    with pytest.raises(
        TypeError, match=r"no interval bound for softmax: each output depends on all inputs.*\(in layer 1, Softmax\)"
    ):
        MTLIBP()(network, images, labels, PGD_5, 0.3)
