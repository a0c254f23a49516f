from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.networks import ResNet18
from rampart.networks.resnet import CHANNELS_LAST_FROM


def unfolded(network: Any, images: Tensor) -> Tensor:
    """Return the logits of He et al. 2016, with each BatchNorm after its convolution."""

    def block(block: Any, x: Tensor) -> Tensor:
        out = F.relu(block.bn1(block.conv1(x)))
        return F.relu(block.bn2(block.conv2(out)) + block.shortcut(x))

    x = F.relu(network.bn1(network.conv1(network.normalize(images))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for module in stage:
            x = block(module, x)
    logits: Tensor = network.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
    return logits


@pytest.fixture
def network() -> Any:
    network = ResNet18().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # random statistics and affine parameters
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.mark.parametrize("n", [3, CHANNELS_LAST_FROM])
@pytest.mark.parametrize("training", [True, False])
def test_folding_batchnorm_does_not_change_logits_or_gradients(network: Any, n: int, training: bool) -> None:
    network.train(training)
    images, labels = torch.rand(n, 3, 32, 32).double(), torch.arange(n) % 10
    results = []
    for forward in (network, lambda x: unfolded(network, x)):
        inputs = images.clone().requires_grad_()
        logits = forward(inputs)
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, labels), [inputs, *network.parameters()])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_batchnorm_without_running_statistics_normalises_by_the_batch(network: Any) -> None:
    images = torch.rand(3, 3, 32, 32).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    torch.testing.assert_close(network.eval()(images), unfolded(network, images))


def test_synchronised_batchnorm_gives_the_same_logits(network: Any) -> None:
    images = torch.rand(3, 3, 32, 32).double()
    expected = unfolded(network.eval(), images)
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(network)(images), expected)


def test_batchnorm_without_affine_parameters_only_normalises(network: Any) -> None:
    network.layer2[0].bn1 = nn.BatchNorm2d(128, affine=False).double()
    images = torch.rand(3, 3, 32, 32).double()
    torch.testing.assert_close(network.eval()(images), unfolded(network, images))


def test_hooks_are_called_once_per_layer(network: Any) -> None:
    seen = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    network.float().eval()(torch.rand(4, 3, 32, 32))
    assert len(set(seen)) == len(seen) == 40


def test_parameter_names_are_those_of_published_weights(network: Any) -> None:
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv2.weight", "layer4.1.bn2.bias", "linear.weight"} <= names
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_var"} <= names
    assert not any("layer1.0.shortcut" in name or "layer2.1.shortcut" in name for name in names)
    assert sum(p.numel() for p in network.parameters()) == 11_173_962


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_resnet_can_be_attacked_and_trained(batchnorm: Any) -> None:
    network = ResNet18(num_classes=4)
    images, labels = torch.rand(2, 3, 32, 32), torch.arange(2)
    adv = PGD(steps=2, batchnorm=batchnorm)(network, images, labels, eps="8/255")
    assert 0 < (adv - images).abs().max().item() <= 8 / 255
    F.cross_entropy(network(adv), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_width_sets_the_channels_of_all_stages() -> None:
    network = ResNet18(width=4)
    assert [network.linear.in_features, network.conv1.out_channels] == [32, 4]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ResNet18(width=0)
