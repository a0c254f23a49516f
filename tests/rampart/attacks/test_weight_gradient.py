"""The gradient of the weights from the backward pass of an attack's last step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.attacks import PGD
from rampart.networks import MNISTCNN
from tests.conftest import small_network


@pytest.mark.parametrize("attack", [PGD(steps=4), PGD(steps=3, step_schedule="linear"), PGD(steps=1)])
def test_weight_gradient_is_that_of_the_mean_loss_at_the_last_but_one_iterate(
    attack: PGD, images: Tensor, labels: Tensor
) -> None:
    network = MNISTCNN().double()
    images = images.double()
    weights = list(network.parameters())
    seen: list[Tensor] = []
    hook = network.register_forward_hook(lambda _module, inputs, _logits: seen.append(inputs[0].detach().clone()))
    adv, gradients = attack.with_weight_gradient(
        network, images, labels, 0.3, weights, torch.Generator().manual_seed(1)
    )
    hook.remove()
    assert len(seen) == attack.steps
    torch.testing.assert_close(adv, attack(network, images, labels, 0.3, torch.Generator().manual_seed(1)))
    expected = torch.autograd.grad(F.cross_entropy(network(seen[-1]), labels), weights)
    torch.testing.assert_close(gradients, expected)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


def test_batchnorm_statistics_are_updated_once_per_step(images: Tensor, labels: Tensor) -> None:
    network = small_network().train()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    attack = PGD(steps=3, batchnorm="train_and_update")
    attack.with_weight_gradient(network, images, labels, 0.1, weights)
    assert network[1].num_batches_tracked == 3
    assert not network[0].bias.requires_grad


def test_without_a_step_there_is_no_weight_gradient(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    for attack, eps in ((PGD(steps=0), 0.1), (PGD(steps=3), 0.0)):
        _, gradients = attack.with_weight_gradient(network, images, labels, eps, [network.fc2.weight])
        assert gradients == (None,)


@pytest.mark.parametrize("change", [{"restarts": 2}, {"iterate": "best"}, {"stop_when_fooled": True}])
def test_attacks_without_a_single_last_step_raise(change: Any, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(TypeError, match="needs a PGD of one run that returns its last iterate"):
        replace(PGD(), **change).with_weight_gradient(MNISTCNN(), images, labels, 0.1, [])
