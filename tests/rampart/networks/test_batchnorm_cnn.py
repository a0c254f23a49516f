"""CNN7, CNN5 and their fixed first layer of gates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rampart.bounds import interval_logits
from rampart.networks import CNN5, CNN7, Normalize, PixelGates

LEVELS = ((0.43, 0.57), (0.2, 0.8))
NARROW: dict[str, Callable[[], Any]] = {
    "CNN7": partial(CNN7, width=4, hidden=8),
    "CNN5": partial(CNN5, width=4, hidden=8),
    "CNN7 for CIFAR-10": partial(
        CNN7, image_shape=(3, 32, 32), width=4, hidden=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    ),
    "CNN5 with gates": partial(CNN5, width=4, hidden=8, levels=LEVELS),
}


def compute_by_layers(network: Any, images: Tensor) -> Tensor:
    """Return the logits by calling each layer."""
    x = network.first_layer(images)
    for number in range(1, len(network.convolutions) + 1):
        x = F.relu(getattr(network, f"bn{number}")(getattr(network, f"conv{number}")(x)))
    return network.fc2(F.relu(network.bn_fc1(network.fc1(x.flatten(1)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "parameters", "multiplications"),
    [
        (CNN7, 13_258_314, 114_456_576),
        (partial(CNN7, image_shape=(3, 32, 32)), 17_191_626, 150_672_384),
        (CNN5, 890_986, 7_786_112),
        (partial(CNN7, width=128), 27_321_482, 431_217_664),
    ],
)
def test_sizes_are_those_of_the_published_network(
    make: Callable[[], Any], parameters: int, multiplications: int
) -> None:
    network = make()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        assert network.to("meta").eval()(torch.rand(1, *network.image_shape)).shape == (1, 10)
    assert counter.get_total_flops() == 2 * multiplications


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("training", [True, False])
def test_folding_batchnorm_does_not_change_logits_or_gradients(kind: str, training: bool) -> None:
    network = NARROW[kind]().double()
    images, labels = torch.rand(3, *network.image_shape).double(), torch.arange(3)
    network(images)  # gives BatchNorm running statistics
    network.train(training)
    results = []
    for forward in (network, partial(compute_by_layers, network)):
        inputs = images.clone().requires_grad_()
        logits = forward(inputs)
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, labels), [inputs, *network.parameters()])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("make", [CNN5, CNN7])
def test_parameters_have_readable_names(make: Callable[..., nn.Module]) -> None:
    names = {name.rpartition(".")[0] for name, _ in make(width=1).named_parameters()}
    convolutions = range(1, 4) if make is CNN5 else range(1, 6)
    layers = {f"{kind}{number}" for kind in ("conv", "bn") for number in convolutions}
    assert names == layers | {"fc1", "bn_fc1", "fc2"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(CNN7, num_classes=1), "num_classes must be at least 2, got 1"),
        (partial(CNN5, width=0), "width must be at least 1, got 0"),
        (partial(CNN5, hidden=0), "hidden must be at least 1, got 0"),
        (partial(CNN7, image_shape=(0, 28, 28)), "image_shape must be at least 1, got 0"),
        (partial(CNN5, image_shape=(1, 1, 1)), r"image_shape \[1, 1, 1\] is too small for CNN5"),
        (partial(CNN7, mean=(0.5,)), "mean and std must be given together"),
        (partial(CNN7, mean=(0.5, 0.5), std=(0.2, 0.2)), "mean must have one number for each of the 1 channels, got 2"),
        (partial(CNN7, mean=(0.5,), std=(0.2,), levels=LEVELS), "leave out mean and std"),
        (partial(CNN5, levels=()), "levels must be pairs of numbers 0 <= low < high <= 1, at least one, got"),
        (partial(CNN5, levels=((0.5, 0.5),)), "levels must be pairs of numbers 0 <= low < high <= 1, at least one"),
    ],
)
def test_wrong_arguments_raise(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_another_shape_raise() -> None:
    with pytest.raises(RuntimeError, match=r"CNN5 is for images of shape \[3, 32, 32\], and these have \[1, 32, 32\]"):
        CNN5(image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3)(torch.rand(2, 1, 32, 32))


def test_the_first_layer_normalises_or_holds_gates_by_option() -> None:
    assert isinstance(CNN5(width=1).first_layer, nn.Identity)
    assert isinstance(CNN5(width=1, mean=[0.5], std=[0.2]).first_layer, Normalize)
    gated = CNN5(width=1, levels=LEVELS)
    assert isinstance(gated.first_layer, PixelGates)
    assert gated.get_parameter("conv1.weight").shape == (1, 2, 5, 5)


def test_a_gate_is_0_up_to_its_low_level_1_from_its_high_level_on_and_linear_between() -> None:
    images = torch.tensor([0.0, 0.43, 0.5, 0.57, 1.0]).view(1, 1, 1, 5)
    gates = PixelGates(LEVELS)(torch.cat([images, 1 - images], 1))
    assert gates.shape == (1, 4, 1, 5)
    torch.testing.assert_close(gates[0, 0, 0], torch.tensor([0, 0, 0.5, 1, 1]))
    torch.testing.assert_close(gates[0, 2, 0], torch.tensor([0, 0.23 / 0.6, 0.5, 0.37 / 0.6, 1]))
    torch.testing.assert_close(gates[0, 1::2, 0], gates[0, ::2, 0].flip(-1))
    assert not list(PixelGates(LEVELS).parameters())


def test_bounds_of_black_and_white_images_are_the_logits_up_to_the_levels() -> None:
    network, images = CNN5(width=4, levels=((0.43, 0.57),)).eval(), (torch.rand(3, 1, 28, 28) > 0.5).float()
    bounds = interval_logits(network, images, 0.42)
    torch.testing.assert_close(bounds.lower, network(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bounds.upper, network(images), atol=1e-4, rtol=1e-4)
    wider = interval_logits(network, images, 0.45)
    assert (wider.lower < bounds.lower - 1e-2).any()


def test_loading_half_precision_weights_keeps_the_levels_exact_and_other_levels_raise() -> None:
    network = CNN5(width=1, levels=LEVELS)
    exact = {name: value.clone() for name, value in network.state_dict().items()}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in exact.items()}
    network.load_state_dict(halves)
    assert torch.equal(network.state_dict()["first_layer.low"], exact["first_layer.low"])
    for levels in (((0.43, 0.57), (0.3, 0.8)), ((0.43, 0.57),)):
        with pytest.raises(RuntimeError, match=r"low is .* in the file, and the network's levels are"):
            PixelGates(levels).load_state_dict({name: halves[f"first_layer.{name}"] for name in ("low", "high")})
