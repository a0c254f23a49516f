from typing import Any

import pytest
import torch
from torch import Tensor

from networks import MNISTCNN
from networks.initialisation import initialise_as_thresholds


@pytest.mark.parametrize(("scheme", "variance"), [("xavier", 2 / (1024 + 1024)), ("he", 2 / 1024)])
def test_variance_is_the_papers(scheme: Any, variance: float) -> None:
    network = MNISTCNN(init=scheme)
    assert network.fc1.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert network.fc1.weight.mean().item() == pytest.approx(0, abs=1e-3)
    for layer in (network.conv1, network.conv2, network.fc1, network.fc2):
        assert layer.bias is not None
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_default_draws_what_torch_draws() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Conv2d(1, 32, 5).weight
    torch.manual_seed(0)
    assert torch.equal(MNISTCNN().conv1.weight, expected)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="init must be one of default, xavier, he, thresholds, got 'lecun'"):
        MNISTCNN(init="lecun")  # type: ignore[arg-type]


def test_thresholds_leave_nothing_of_what_an_attack_does_to_black_and_white() -> None:
    network = MNISTCNN(init="thresholds")
    clean = (torch.rand(8, 1, 28, 28) > 0.5).float()
    worst = (clean - 0.43 * (2 * clean - 1)).clamp(0, 1)
    number = torch.arange(32)
    gain = network.conv1.weight.flatten(1).abs().amax(1).view(1, -1, 1, 1)

    def gates(images: Tensor, dark: int) -> Tensor:  # the difference over that of the levels, of unit gain
        passed = network.conv1(images).relu() / gain
        low, high = (passed[:, (number // 8 % 2 == dark) & (number // 4 % 2 == level)] for level in (0, 1))
        return (low - high) / (-0.14 if dark else 0.14)

    for dark in (0, 1):
        assert torch.allclose(gates(clean, dark), gates(worst, dark), atol=1e-4)
        assert set(gates(clean, dark).round(decimals=3).unique().tolist()) == {0.0, 1.0}
        assert len({tuple(gate.flatten().tolist()) for gate in gates(clean, dark).round()[0]}) == 4  # the four pixels
    assert torch.allclose(gates(clean, 0), 1 - gates(clean, 1), atol=1e-4)


@pytest.mark.parametrize("convolution", [torch.nn.Conv2d(3, 8, 5), torch.nn.Conv2d(1, 8, 1)])
def test_thresholds_refuse_what_they_are_not_for(convolution: torch.nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="thresholds need a convolution from one channel"):
        initialise_as_thresholds(convolution)
