from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rampart.bounds import Interval, interval_logits
from rampart.networks import MNISTCNN, GatedMNISTCNN, ResNet18
from tests.rampart.networks.references import NARROW

NETWORKS: list[Callable[[], Any]] = [MNISTCNN, GatedMNISTCNN, *NARROW.values()]


def sample_box(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Return a corner of the box half the time, otherwise a point inside."""
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype) * 2 - 1
    if torch.rand((), generator=generator) < 0.5:
        noise = noise.sign()
    return (images + eps * noise).clamp(0, 1)


@settings(max_examples=20, deadline=None)
@given(make=st.sampled_from(NETWORKS), eps=st.floats(0, 0.5), seed=st.integers(0, 2**32 - 1))
def test_bounds_hold_for_every_image_in_the_box(make: Callable[[], Any], eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    network = make().double().eval()
    images = torch.rand(3, *network.image_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (3,), generator=generator)
    bounds = interval_logits(network, images, eps)
    worst = bounds.worst_logits(labels)
    for _ in range(4):
        logits = network(sample_box(images, eps, generator))
        assert (logits >= bounds.lower - 1e-9).all()
        assert (logits <= bounds.upper + 1e-9).all()
        assert (logits - logits.gather(1, labels[:, None]) <= worst + 1e-9).all()


@pytest.mark.parametrize("make", NETWORKS)
def test_at_eps_0_the_bounds_are_the_logits(make: Callable[[], Any]) -> None:
    network = make().double().eval()
    images = torch.rand(2, *network.image_shape, dtype=torch.float64)
    labels = torch.tensor([3, 0])
    logits = network(images)
    bounds = interval_logits(network, images, 0.0)
    torch.testing.assert_close(bounds.lower, logits)
    torch.testing.assert_close(bounds.upper, logits)
    torch.testing.assert_close(bounds.worst_logits(labels), logits - logits.gather(1, labels[:, None]))


def test_bounds_of_a_linear_network_are_tight() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([1])
    linear = network[1]
    assert isinstance(linear, nn.Linear)
    differences = linear.weight - linear.weight[1]
    expected = network(images) - network(images)[:, 1:2] + 0.1 * differences.abs().sum(1)
    torch.testing.assert_close(interval_logits(network, images, 0.1).worst_logits(labels), expected)


def test_eliding_the_last_layer_tightens_the_bounds() -> None:
    network, labels = MNISTCNN(), torch.tensor([0, 1])
    bounds = interval_logits(network, torch.rand(2, 1, 28, 28), 0.1)
    separate = Interval(bounds.lower, bounds.upper).worst_logits(labels)
    elided = bounds.worst_logits(labels)
    assert (elided <= separate + 1e-4).all()
    assert (elided < separate - 1e-4).any()


def test_batch_statistics_raise() -> None:
    with pytest.raises(TypeError, match="batch statistics: freeze it"):
        interval_logits(ResNet18(width=4).train(), torch.rand(2, 3, 32, 32), 0.1)


def test_a_network_that_returns_a_tensor_raises() -> None:
    class Numpy(nn.Module):
        def forward(self, images: Interval) -> Tensor:
            return torch.zeros(len(images), 10)

    with pytest.raises(
        TypeError, match="must use torch's functions alone to be bounded: it returned Tensor for an Interval"
    ):
        interval_logits(Numpy(), torch.rand(2, 1, 4, 4), 0.1)
