"""The measurement of lower precision: rounding to TF32, and its table at toy size."""

import pytest
import torch
from torch import nn

from benchmarks import precision
from benchmarks.precision import SimulatedTF32, round_to_tf32
from rampart.attacks import PGD
from tests.conftest import ROOT


def test_tf32_keeps_ten_bits_of_mantissa() -> None:
    values = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -(1 + 2**-11), 0.0])
    assert round_to_tf32(values).tolist() == [1, 1 + 2**-10, 1 + 2**-10, 1, -(1 + 2**-10), 0]
    random = torch.randn(1000)
    assert (round_to_tf32(random) / random - 1).abs().max() <= 2**-11
    assert round_to_tf32(random.double()).equal(random.double())


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 3, 3), nn.Linear(8, 3), nn.Linear(8, 3, bias=False)])
def test_factors_of_products_are_rounded_in_both_passes(layer: nn.Conv2d | nn.Linear) -> None:
    images = torch.rand(2, 1, 8, 8).requires_grad_()
    grad = torch.rand_like(layer(images))
    with SimulatedTF32():
        out = layer(images)
        (simulated,) = torch.autograd.grad(out, images, grad)
    layer.weight.data = round_to_tf32(layer.weight.data)
    rounded = round_to_tf32(images.detach()).requires_grad_()
    expected = layer(rounded)
    assert out.allclose(expected, atol=1e-6)
    assert simulated.allclose(torch.autograd.grad(expected, rounded, round_to_tf32(grad))[0], atol=1e-6)
    with torch.no_grad(), SimulatedTF32():
        assert layer(images).equal(out)


def test_a_table_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "ATTACKS", {"PGD-40": PGD(steps=2)})
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    weights = {"fast": ROOT / "pretrained/mnist/fast/weights.safetensors"}
    networks = precision.measure_attacks(weights, images, labels, 0)["networks"]
    assert list(networks) == ["fast", "fast, as trained"]
    trained = networks["fast, as trained"]
    assert trained["gradients_at_random_points"]["float32"]["first_order_rise"] == pytest.approx(1, abs=1e-3)
    rows = trained["attacks"]["PGD-40"]
    assert list(rows) == ["float32", "TF32, simulated", "bfloat16", "float32, another seed"]
    assert rows["float32"]["other_outcome_than_float32"] == 0
