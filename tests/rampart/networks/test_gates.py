from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rampart.networks import MNISTCNN, GatedMNISTCNN, plain_form
from rampart.networks.gates import LEVELS, GateConv2d, Gates

EPS = LEVELS[0]  # the largest eps that changes no gate of a black or white pixel


def test_perturbations_of_black_and_white_pixels_do_not_change_the_logits() -> None:
    network = GatedMNISTCNN()
    clean = (torch.rand(8, 1, 28, 28) > 0.5).float()
    for adv in ((clean - EPS * (2 * clean - 1)), clean + EPS * (torch.rand_like(clean) * 2 - 1)):
        assert torch.allclose(network(adv.clamp(0, 1)), network(clean), atol=1e-4)


def test_a_pooled_gate_is_the_gate_of_the_brightest_or_darkest_of_four_pixels() -> None:
    images = torch.rand(2, 1, 28, 28)
    gates = GatedMNISTCNN().conv1(images)
    assert gates.shape == (2, 16, 12, 12)
    for gate in range(16):
        down, across = 2 + gate // 2 % 2, 2 + gate % 2
        pixels = images[:, 0, down : down + 24, across : across + 24].reshape(2, 12, 2, 12, 2)
        low, high = LEVELS[gate // 8 : gate // 8 + 2]
        bright = ((pixels - low) / (high - low)).clamp(0, 1)
        expected = bright.amax((2, 4)) if gate % 8 < 4 else bright.amin((2, 4)) - 1
        assert torch.allclose(gates[:, gate], expected, atol=1e-5)


def test_a_plain_convolution_with_the_same_weights_computes_each_gate_as_a_pair() -> None:
    gates, images = GatedMNISTCNN().conv1, torch.rand(2, 1, 28, 28)
    pairs = F.conv2d(images, gates.weight, gates.bias).relu()
    pairs = F.max_pool2d(pairs, 2)
    assert torch.allclose(pairs[:, 0::2] - pairs[:, 1::2], gates(images), atol=1e-5)


def test_every_pixel_between_the_outer_levels_has_a_gradient() -> None:
    gates = GatedMNISTCNN().conv1
    images = torch.empty(4, 1, 28, 28).uniform_(LEVELS[0] + 1e-3, LEVELS[-1] - 1e-3)
    blocks = images[:, :, 2:26:2, 2:26:2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    images[:, :, 2:26, 2:26] = blocks  # all four pixels of a bright gate are equal
    (gradient,) = torch.autograd.grad(gates(images.requires_grad_())[:, [0, 8]].sum(), images)
    assert (F.avg_pool2d(gradient[:, :, 2:26, 2:26], 2) * 4 > 1).all()


def test_training_changes_neither_the_gates_nor_the_opposite_pairs_of_weights() -> None:
    network = GatedMNISTCNN()
    before = network.conv1.weight.clone()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        images = torch.rand(4, 1, 28, 28, requires_grad=True)
        network(images).logsumexp(1).sum().backward()
        optimizer.step()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert torch.equal(network.conv1.weight, before)
    assert torch.equal(network.conv2.weight[:, 0::2], -network.conv2.weight[:, 1::2])
    clean = (torch.rand(8, 1, 28, 28) > 0.5).float()
    adv = (clean - EPS * (2 * clean - 1)).clamp(0, 1)
    assert torch.allclose(network(adv), network(clean), rtol=1e-4, atol=1e-4)


def test_the_papers_network_with_the_same_weights_computes_the_same_logits() -> None:
    gated, plain = GatedMNISTCNN(), MNISTCNN()
    plain.load_state_dict(gated.state_dict())
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(plain(images), gated(images), atol=1e-5)


def test_the_plain_form_is_the_papers_network_on_the_same_parameters() -> None:
    gated, papers, images = GatedMNISTCNN(), MNISTCNN(), torch.full((1, 1, 28, 28), 0.2)
    plain = plain_form(nn.Sequential(nn.Identity(), gated)).get_submodule("1")
    assert isinstance(plain, MNISTCNN)
    assert plain.conv1.weight is gated.conv1.weight
    assert plain.fc1 is gated.fc1
    assert isinstance(gated.conv1, Gates)
    nn.init.ones_(gated.fc1.bias)
    papers.load_state_dict(gated.state_dict())
    gradients = [
        torch.autograd.grad(network(images.requires_grad_()).logsumexp(1).sum(), images)[0]
        for network in (plain, papers, gated)
    ]
    assert torch.equal(plain(images), papers(images))
    assert torch.equal(gradients[0], gradients[1])
    assert not gradients[2].any()


def test_a_network_without_gates_is_its_own_plain_form() -> None:
    network = MNISTCNN()
    for wrapped in (network, nn.Sequential(network), nn.DataParallel(network), compiled(network)):
        assert plain_form(wrapped) is wrapped


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, compiled])
def test_the_plain_form_of_a_wrapped_network_has_no_gates(wrap: Callable[[nn.Module], nn.Module]) -> None:
    gated = GatedMNISTCNN()
    plain = plain_form(wrap(gated).eval())
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(plain(images), gated.plain()(images))
    assert not any(isinstance(module, Gates | GateConv2d | GatedMNISTCNN) for module in plain.modules())
    assert {id(parameter) for parameter in plain.parameters()} == {id(parameter) for parameter in gated.parameters()}
    assert not any(module.training for module in plain.modules())


def test_the_plain_form_keeps_hooks_and_settings() -> None:
    gated, called = GatedMNISTCNN(num_classes=3), []
    gated.register_forward_hook(lambda module, *_: called.append(module))
    plain = gated.plain()
    plain(torch.rand(1, 1, 28, 28))
    assert called == [plain]
    assert plain.init_args == MNISTCNN(num_classes=3).init_args
    assert repr(plain) == repr(MNISTCNN(num_classes=3))


@pytest.mark.parametrize("name", ["conv1.weight", "conv1.bias", "conv2.weight"])
def test_loading_weights_that_are_not_gates_raises(name: str) -> None:
    gated, others = GatedMNISTCNN(), GatedMNISTCNN().state_dict()
    gated.load_state_dict(others)
    others[name] = MNISTCNN().state_dict()[name]
    with pytest.raises(RuntimeError, match=rf"{name} is not that of a network with gates"):
        gated.load_state_dict(others)


def test_loading_half_precision_weights_keeps_the_gates_exact() -> None:
    gated, exact = GatedMNISTCNN(), GatedMNISTCNN().state_dict()
    gated.load_state_dict({name: value.half() for name, value in exact.items()})
    assert torch.equal(gated.state_dict()["conv1.bias"], exact["conv1.bias"])
    assert torch.equal(gated.state_dict()["conv2.weight"], exact["conv2.weight"].half().float())


@pytest.mark.parametrize(("filters", "size"), [(16, 5), (32, 1)])
def test_a_layer_too_small_for_the_gates_raises(filters: int, size: int) -> None:
    with pytest.raises(ValueError, match="gates need at least 32 filters of at least 3x3, got"):
        Gates(filters, size)
