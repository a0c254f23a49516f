from typing import Any

import pytest
import torch

from rampart.networks import MNISTCNN


@pytest.mark.parametrize(("scheme", "variance"), [("xavier", 2 / (1024 + 1024)), ("he", 2 / 1024)])
def test_variance_is_that_of_the_cited_paper(scheme: Any, variance: float) -> None:
    network = MNISTCNN(init=scheme)
    assert network.fc1.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert network.fc1.weight.mean().item() == pytest.approx(0, abs=1e-3)
    for layer in (network.conv1, network.conv2, network.fc1, network.fc2):
        assert layer.bias is not None
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_default_weights_are_torchs() -> None:
    torch.manual_seed(0)
    expected = torch.nn.Conv2d(1, 32, 5).weight
    torch.manual_seed(0)
    assert torch.equal(MNISTCNN().conv1.weight, expected)


def test_an_unknown_scheme_raises() -> None:
    with pytest.raises(ValueError, match="init must be one of default, xavier, he, got 'lecun'"):
        MNISTCNN(init="lecun")  # type: ignore[arg-type]
