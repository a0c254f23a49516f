import math
from typing import Any

import pytest
import torch
from torch import nn

from rampart.networks import CNN7, MNISTCNN, ResNet18
from rampart.networks.initialisation import initialise


@pytest.mark.parametrize(("scheme", "variance"), [("xavier", 2 / (1024 + 1024)), ("he", 2 / 1024)])
def test_variance_is_that_of_the_cited_paper(scheme: Any, variance: float) -> None:
    network = MNISTCNN(init=scheme)
    assert network.fc1.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert network.fc1.weight.mean().item() == pytest.approx(0, abs=1e-3)
    for layer in (network.conv1, network.conv2, network.fc1, network.fc2):
        assert layer.bias is not None
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_weights_for_bounds_have_the_standard_deviation_of_shi_et_al() -> None:
    network, torchs = MNISTCNN(init="ibp"), MNISTCNN()
    for layer, fan_in in ((network.conv1, 25), (network.conv2, 32 * 25), (network.fc1, 1024)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / fan_in, rel=0.1)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.3 / fan_in)
    for layer, others in ((network.conv2, torchs.conv2), (network.fc1, torchs.fc1), (network.fc2, torchs.fc2)):
        assert layer.bias is not None
        assert others.bias is not None
        assert layer.bias.std().item() == pytest.approx(others.bias.std().item(), rel=0.7)
    assert network.fc2.weight.std().item() == pytest.approx(torchs.fc2.weight.std().item(), rel=0.1)
    narrow = CNN7(width=16, hidden=32)
    assert narrow.fc1.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / (14 * 14 * 32), rel=0.05)


def test_weights_for_bounds_are_halved_after_sums() -> None:
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(4, 2))
    initialise(network, "ibp", after_sums=[network[1]])
    stds = [layer.weight.std().item() for layer in network.children() if isinstance(layer, nn.Conv2d)]
    assert stds == pytest.approx([math.sqrt(2 * math.pi) / fan_in for fan_in in (72, 2 * 576)], rel=0.1)


def test_layers_of_a_resnet_that_read_a_sum_have_half_the_weights_for_bounds() -> None:
    stds = {
        name: layer.weight.std().item() * layer.weight[0].numel() / math.sqrt(2 * math.pi)
        for name, layer in ResNet18(width=16, init="ibp").named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    halved = {name for name, std in stds.items() if std == pytest.approx(0.5, rel=0.2)}
    firsts = {f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)} - {"layer1.0.conv1"}
    assert halved == firsts | {f"layer{stage}.0.shortcut.0" for stage in range(2, 5)}
    assert all(std == pytest.approx(1, rel=0.2) for name, std in stds.items() if name not in halved)


def test_default_weights_are_torchs() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Conv2d(1, 32, 5).weight
    torch.manual_seed(0)
    assert torch.equal(MNISTCNN().conv1.weight, expected)


def test_an_unknown_scheme_raises() -> None:
    with pytest.raises(ValueError, match="init must be one of default, xavier, he, ibp, got 'lecun'"):
        MNISTCNN(init="lecun")  # type: ignore[arg-type]
