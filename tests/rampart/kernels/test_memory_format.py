from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from rampart.files import export_network, fingerprint
from rampart.kernels import lay_out, lay_out_network, lay_out_state
from rampart.networks import MNISTCNN

CHANNELS_LAST = torch.channels_last


def make_network() -> Any:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 3))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 1, 4, 5), (8, 4, 1, 1), (0, 3, 4, 4)])
def test_strides_are_exact_in_dimensions_of_size_1_too(shape: Any) -> None:
    images = torch.rand(shape)
    laid = lay_out(images, CHANNELS_LAST)
    n, c, h, w = shape
    assert laid.stride() == torch.empty(shape, memory_format=CHANNELS_LAST).stride() == (h * w * c, 1, w * c, c)
    assert torch.equal(laid, images)
    if n > 0:  # The rule by which torch's convolutions infer the format.
        assert torch._prims_common.suggest_memory_format(laid) == CHANNELS_LAST
    back = lay_out(laid, torch.contiguous_format)
    assert back.stride() == images.stride()
    assert torch.equal(back, images)
    assert fingerprint(laid) == fingerprint(images)


def test_other_tensors_are_returned_unchanged() -> None:
    images = torch.rand(2, 3, 4, 5)
    assert lay_out(images, None) is images
    assert lay_out(images, torch.contiguous_format) is images
    rows = torch.rand(2, 3)
    assert lay_out(rows, CHANNELS_LAST) is rows
    part = torch.rand(5, 1, 4, 4)[2:]
    assert torch.equal(lay_out(part, CHANNELS_LAST), part)


def test_a_network_keeps_parameters_values_outputs_and_gradients() -> None:
    network = make_network()
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 3

    def run() -> Any:
        network.zero_grad()
        logits = network(lay_out(images, image_format))
        F.cross_entropy(logits, labels).backward()
        return [logits, *(parameter.grad.clone() for parameter in network.parameters())]

    image_format: Any = None
    before, parameters = run(), list(network.parameters())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    image_format = lay_out_network(network, "channels_last", "cpu")
    assert image_format == CHANNELS_LAST
    assert [id(parameter) for parameter in network.parameters()] == [id(parameter) for parameter in parameters]
    assert network[0].weight.stride() == (9, 1, 3, 1)
    assert network[2].weight.stride() == (4, 1, 4, 4)
    for old, new in zip(before, run(), strict=True):
        torch.testing.assert_close(old, new)
    # A fused optimizer requires that strides of weights and gradients agree.
    assert all(parameter.grad.stride() == parameter.stride() for parameter in network.parameters())
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network.load_state_dict(state)
    assert network[0].weight.stride() == (9, 1, 3, 1)
    assert lay_out_network(network, "contiguous", "cpu") == torch.contiguous_format
    assert network[0].weight.stride() == (9, 9, 3, 1)


def test_the_default_depends_on_the_device_and_on_convolutions() -> None:
    network, linear = make_network(), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert lay_out_network(network, None, "cpu") is None
    assert network[0].weight.stride() == (9, 9, 3, 1)
    assert lay_out_network(linear, None, "cuda") is lay_out_network(linear, "channels_last", "cpu") is None
    assert lay_out_network(network, None, "xpu") == CHANNELS_LAST


def test_pruned_and_parametrised_weights_are_laid_out() -> None:
    pruned: Any = nn.Conv2d(3, 4, 3)
    parametrised = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    prune.random_unstructured(pruned, "weight", 0.5)
    network = nn.Sequential(pruned, parametrised, nn.LazyConv2d(4, 3), nn.Conv3d(4, 4, 1))
    lay_out_network(network, "channels_last", "cpu")
    assert pruned.weight_orig.stride() == (27, 1, 9, 3)
    assert network.get_parameter("1.parametrizations.weight.original1").stride() == (27, 1, 9, 3)


def test_an_optimizers_state_follows_the_parameters() -> None:
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    expected = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    lay_out_network(network, "channels_last", "cpu")
    lay_out_state(optimizer)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == parameter.stride()
        assert all(torch.equal(state[name], expected[parameter][name]) for name in state)


def test_exported_files_do_not_depend_on_the_memory_format(tmp_path: Any) -> None:
    network = MNISTCNN()
    for name in ("one", "other"):
        export_network(network, tmp_path / f"{name}.pth")
        export_network(network, tmp_path / f"{name}.safetensors")
        lay_out_network(network, "channels_last", "cpu")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    one, other = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("one", "other"))
    assert all(one[name].stride() == other[name].stride() and torch.equal(one[name], other[name]) for name in one)
