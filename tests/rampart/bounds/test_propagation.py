import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from rampart.bounds import Interval, box_logits, interval_logits
from rampart.networks import CNN5, CNN7, MNISTCNN, GatedMNISTCNN, ResNet18
from tests.rampart.networks.references import NARROW

CERTIFIABLE: list[Callable[[], Any]] = [partial(CNN7, width=4, hidden=8), partial(CNN5, levels=((0.3, 0.7),))]
NETWORKS: list[Callable[[], Any]] = [MNISTCNN, GatedMNISTCNN, *CERTIFIABLE, *NARROW.values()]


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


def test_batch_statistics_without_the_batch_raise() -> None:
    box = torch.rand(2, 3, 32, 32)
    with pytest.raises(
        TypeError, match=r"batch statistics without the batch: give `clean` \(in layer bn1, BatchNorm2d"
    ):
        box_logits(ResNet18(width=4).train(), box, box)


def test_a_batch_of_another_shape_raises() -> None:
    box = torch.rand(2, 1, 28, 28)
    with pytest.raises(
        ValueError, match=r"clean must have the shape of the box, \(2, 1, 28, 28\), got \(1, 1, 28, 28\)"
    ):
        box_logits(MNISTCNN(), box, box, clean=box[:1])


@pytest.mark.parametrize("make", NETWORKS)
def test_the_batch_that_passes_along_has_the_logits_of_its_own_pass(make: Callable[[], Any]) -> None:
    network = make().double()
    images = torch.rand(3, *network.image_shape, dtype=torch.float64)
    alone = copy.deepcopy(network)
    expected = alone(images)
    clean = box_logits(network, images, images, clean=images).clean
    assert clean is not None
    torch.testing.assert_close(clean, expected)
    # Running statistics are updated once.
    torch.testing.assert_close(dict(network.named_buffers()), dict(alone.named_buffers()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_in_train_mode_bounds_by_the_statistics_of_the_clean_batch(momentum: float | None) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    images = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    labels = torch.randint(0, 3, (5,))
    # With a momentum of 1, the running statistics are those of the batch, but for Bessel's correction of the variance.
    frozen = copy.deepcopy(network)
    norm = frozen[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 1.0
    frozen(images)
    assert norm.running_var is not None
    norm.running_var *= (5 * 16 - 1) / (5 * 16)
    bounds = interval_logits(network, images, 0.2)
    expected = interval_logits(frozen.eval(), images, 0.2)
    torch.testing.assert_close(bounds.worst_logits(labels), expected.worst_logits(labels))
    # A batch of other images gives other statistics.
    other = interval_logits(network, images, 0.2, clean=images / 2)
    assert not torch.allclose(other.worst_logits(labels), expected.worst_logits(labels))


def test_bounds_pass_gradients_through_batch_statistics() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    images, labels = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(*values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        box = Interval((images - 0.1).clamp(0, 1), (images + 0.1).clamp(0, 1), clean=images)
        bounds: Interval = functional_call(network, named, (box,))
        return F.cross_entropy(bounds.worst_logits(labels), labels)

    network.train()
    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in parameters.values()])


def test_each_image_has_its_own_eps() -> None:
    network, images = MNISTCNN().double(), torch.rand(3, 1, 28, 28, dtype=torch.float64)
    eps = torch.tensor([0.0, 0.1, 0.4])
    bounds = interval_logits(network, images, eps)
    for number, radius in enumerate(eps.tolist()):
        alone = interval_logits(network, images[number : number + 1], radius)
        torch.testing.assert_close(bounds.upper[number : number + 1], alone.upper, rtol=1e-5, atol=1e-6)


def test_a_network_that_returns_a_tensor_raises() -> None:
    class Numpy(nn.Module):
        def forward(self, images: Interval) -> Tensor:
            return torch.zeros(len(images), 10)

    with pytest.raises(
        TypeError, match="must use torch's functions alone to be bounded: it returned Tensor for an Interval"
    ):
        interval_logits(Numpy(), torch.rand(2, 1, 4, 4), 0.1)


def test_worst_logits_are_not_rounded_by_autocast() -> None:
    interval = interval_logits(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), torch.rand(2, 1, 3, 3), 0.1)
    labels = torch.tensor([0, 2])
    expected = interval.worst_logits(labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(interval.worst_logits(labels), expected)
