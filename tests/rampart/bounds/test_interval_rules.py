"""Bounds hold for every tensor in the box, and are tight for elementwise functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rampart.bounds import Interval, NoBoundError, interval_logits

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def box(scale: float = 1.5) -> tuple[Tensor, Tensor]:
    lower = 2 * random(2, 4, 6, 6)
    return lower, lower + scale * torch.rand(lower.shape, generator=GENERATOR, dtype=torch.float64)


def points(lower: Tensor, upper: Tensor) -> list[Tensor]:
    """Return the box's lower and upper bounds, other corners, and points inside."""
    inside = [torch.rand(lower.shape, generator=GENERATOR, dtype=torch.float64) for _ in range(6)]
    return [lower, upper, *(lower + (upper - lower) * share for share in (*inside, *(x.round() for x in inside)))]


def in_place(x: Any) -> Any:
    x -= 0.3
    x /= -2
    x *= torch.ones(4, 1, 1)
    x += 1
    return x


ELEMENTWISE: dict[str, Callable[[Any], Any]] = {
    **{
        type(module).__name__ + str(number): module
        for number, module in enumerate(
            [
                nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.LeakyReLU(0.2),
                nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(-0.5), nn.Sigmoid(), nn.Tanh(), nn.ELU(),
                nn.ELU(0.3, True), nn.ELU(-1.0), nn.SELU(), nn.CELU(0.7), nn.Softplus(), nn.Softplus(beta=3),
                nn.Softsign(), nn.LogSigmoid(), nn.Hardtanh(-0.5, 2), nn.Hardtanh(inplace=True), nn.Hardsigmoid(),
                nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True), nn.Mish(),
                nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.1, -1), nn.RReLU().eval(), nn.PReLU(),
                nn.PReLU(4, -0.3), nn.Dropout2d().eval(), nn.AlphaDropout().eval(), nn.Identity(),
            ]
        )
    },
    "methods": lambda x: x.relu().tanh().sigmoid().clamp(0.1, 0.6),
    "clamp": lambda x: torch.clamp(x, max=0.4),
    "in place": lambda x: x.clone().mul_(-2).add_(1).relu_(),
    "operators in place": lambda x: in_place(x),
    "largest": lambda x: torch.max(x, torch.ones(())).min(torch.full((), 2.0)),
    "abs": abs,
    "square": lambda x: x**2,
    "cube": lambda x: x.pow(3),
    "exp": lambda x: (x / 3).exp().log1p().sqrt(),
    "times": lambda x: x * 0.5,
    "times negative": lambda x: -1.5 * x,
    "by": lambda x: x / -0.3,
    "from": lambda x: 1 - x,
    "torch.sub": lambda x: torch.sub(x, 2, alpha=-1),
    "torch.add": lambda x: torch.add(x, 2, alpha=-3),
    "negated": lambda x: -x,
    "channels": lambda x: x * torch.linspace(-1, 2, 4).view(4, 1, 1) - torch.ones(4, 1, 1),
    "tensor first": lambda x: torch.linspace(-1, 2, 4).view(4, 1, 1) * (torch.ones(4, 1, 1) - x) + 1,
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_bounds_of_elementwise_functions_are_their_extrema(name: str) -> None:
    function, (lower, upper) = ELEMENTWISE[name], box()
    if isinstance(function, nn.PReLU):
        function.double()
    bounds = function(Interval(lower.clone(), upper.clone()))
    shares = torch.linspace(0, 1, 401).double().view(-1, 1, 1, 1, 1)
    values = torch.stack([function(point.clone()) for point in lower + (upper - lower) * shares])
    torch.testing.assert_close(bounds.lower, values.amin(0), rtol=1e-3, atol=5e-3)
    torch.testing.assert_close(bounds.upper, values.amax(0), rtol=1e-3, atol=5e-3)
    assert (bounds.lower <= values + 1e-12).all()
    assert (bounds.upper >= values - 1e-12).all()


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        out = self.layers(x)
        out += x
        return out


STRUCTURES: dict[str, Callable[[Any], Any]] = {
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], 2, -1).unflatten(2, (8, 9)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1).permute(0, 2, 3, 1).transpose(1, 3),
    "flatten": nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 36))),
    "index": lambda x: x[:, 1:3, ::2] + x[:, [0, 3], 1::2],
    "chunk": lambda x: torch.cat([*x.chunk(2, 1), x.split(3, 1)[1], torch.zeros(2, 1, 6, 6)], 1),
    "stack": lambda x: torch.stack([x, -x], 2).flatten(1, 2),
    "average": nn.AvgPool2d(2, padding=1),
    "adaptive average": nn.AdaptiveAvgPool2d(2),
    "maximum": nn.MaxPool2d(3, 2, padding=1),
    "adaptive maximum": nn.AdaptiveMaxPool2d(3),
    "mean": lambda x: x.mean(dim=(2, 3), keepdim=True) - x.sum((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True),
    "zeros": nn.ZeroPad2d(1),
    "constant": nn.ConstantPad2d((1, 0, 2, 0), -0.7),
    "reflected": nn.ReflectionPad2d(2),
    "replicated": nn.ReplicationPad2d(1),
    "circular": nn.CircularPad2d(1),
    "shortcut of zeros": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "shuffle": nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(3), nn.ChannelShuffle(3)),
    "larger": nn.Upsample(scale_factor=2, mode="bilinear"),
    "product": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "matmul": lambda x: x.flatten(1) @ random(144, 3),
    "before": lambda x: torch.ones(2, 6).double() @ x @ torch.ones(6, 1).double(),
    "conv1d": lambda x: F.conv1d(input=x.flatten(2), weight=torch.ones(2, 4, 3).double(), stride=2),
    "transposed": nn.ConvTranspose2d(4, 2, 3, stride=2).double(),
    "padded convolution": nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect").double(),
    "block": Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).eval(), nn.ReLU(inplace=True)).double(),
    "where": lambda x: torch.where(torch.arange(6) > 2, x, torch.zeros(())) + x.contiguous(),
    "shape alone": lambda x: x + torch.zeros_like(x) + x.new_ones(1),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_bounds_hold_for_every_tensor_in_the_box(name: str) -> None:
    function, (lower, upper) = STRUCTURES[name], box()
    GENERATOR.manual_seed(1)
    bounds = function(Interval(lower.clone(), upper.clone()))
    for point in points(lower, upper):
        GENERATOR.manual_seed(1)
        value = function(point.clone())
        assert bounds.shape == value.shape
        assert (value >= bounds.lower - 1e-10).all()
        assert (value <= bounds.upper + 1e-10).all()


def layers(draw: st.DrawFn) -> nn.Module:
    """Return a random network for images of 1x8x8."""
    parts: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    activations = [
        nn.ReLU(True),
        nn.LeakyReLU(0.1, True),
        nn.Tanh(),
        nn.GELU(),
        nn.SiLU(True),
        nn.ELU(),
        nn.Hardswish(),
    ]
    for _ in range(draw(st.integers(1, 3))):
        parts += [
            draw(st.sampled_from(activations)),
            draw(st.sampled_from([nn.Identity(), nn.BatchNorm2d(4).eval(), nn.Dropout2d().eval()])),
            draw(st.sampled_from([nn.Identity(), nn.ReflectionPad2d(1), nn.AvgPool2d(2, 1), nn.MaxPool2d(2, 1)])),
            Residual(nn.Conv2d(4, 4, 3, padding=1), draw(st.sampled_from(activations))),
        ]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@settings(max_examples=15, deadline=None)
@given(data=st.data(), eps=st.floats(0, 0.5), seed=st.integers(0, 2**32 - 1))
def test_bounds_of_random_networks_hold_in_double_and_single_precision(
    data: st.DataObject, eps: float, seed: int
) -> None:
    torch.manual_seed(seed)
    network = data.draw(st.composite(layers)())
    for dtype, margin in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        network.to(dtype)
        images, labels = torch.rand(3, 1, 8, 8, dtype=dtype), torch.tensor([0, 1, 2])
        bounds = interval_logits(network, images, eps)
        worst = bounds.worst_logits(labels)
        for point in points((images - eps).clamp(0, 1), (images + eps).clamp(0, 1)):
            logits = network(point.to(dtype))
            assert (logits >= bounds.lower - margin).all()
            assert (logits <= bounds.upper + margin).all()
            assert (logits - logits.gather(1, labels[:, None]) <= worst + margin).all()


class Uses(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


WITHOUT_BOUND: dict[str, tuple[nn.Module, str]] = {
    "normalised": (nn.GroupNorm(1, 4), "group_norm: it divides by statistics of the image"),
    "by layer": (nn.LayerNorm(6), "layer_norm: it divides"),
    "by instance": (nn.InstanceNorm2d(4), "instance_norm: it divides"),
    "softmax": (nn.Softmax(1), "softmax: each output depends on all inputs; let the network return logits"),
    "method": (Uses(lambda x: x.sin()), "sin"),
    "attribute": (Uses(lambda x: x.grad), "the attribute grad"),
    "unknown": (Uses(lambda x: x.frobnicate()), "the attribute frobnicate"),
    "comparison": (Uses(lambda x: x * (x > 0)), "the comparison >"),
    "equality": (Uses(lambda x: x * (x == 0)), "the comparison =="),
    "branch": (Uses(lambda x: x if x else -x), "bool"),
    "assignment": (Uses(lambda x: x.__setitem__(0, 1)), "item assignment"),
    "reciprocal": (Uses(lambda x: 1 / x), "division by an interval"),
    "exponent": (Uses(lambda x: 2**x), "an exponent"),
    "maximum": (Uses(lambda x: x.max(1)[0]), "max with a dimension, which returns indices too: use amax"),
    "root": (Uses(lambda x: x**0.5), "pow with an exponent that is not a whole number from 1 to 99, got 0.5"),
    "two": (Uses(lambda x: x @ x), "matmul of two intervals"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "max_pool2d_with_indices"),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), "bicubic interpolation"),
    "softplus": (nn.Softplus(threshold=2), "softplus with a threshold below 15, got 2"),
    "threshold": (nn.Threshold(0.1, 20), "threshold 0.1 with a value above it, got 20"),
    "random slopes": (nn.RReLU(), "rrelu in train mode"),
    "train mode": (nn.Dropout2d(), "dropout in train mode"),
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False).eval(), "BatchNorm by batch statistics"),
    "wrong arguments": (Uses(lambda x: x.relu(1, 2, 3)), "relu of these arguments"),
    "a view's change": (
        Uses(lambda x: (x.view(2, -1).relu_(), x + 1)),
        "after another view of it was changed in place",
    ),
    "changes a tensor": (Uses(lambda x: torch.ones(2, 4, 6, 6).add_(x)), "add_"),
}


@pytest.mark.parametrize("name", WITHOUT_BOUND)
def test_an_operation_without_a_bound_raises_one_line_that_names_the_layer(name: str) -> None:
    module, message = WITHOUT_BOUND[name]
    network = nn.Sequential(nn.Identity(), nn.Sequential(module))
    with pytest.raises(NoBoundError, match=f"no interval bound for .*{message}") as error:
        interval_logits(network, torch.rand(2, 4, 6, 6), 0.1)
    assert str(error.value).endswith(f"(in layer 1.0, {type(module).__name__})")
    assert "\n" not in str(error.value)


def test_an_interval_has_the_shape_dtype_and_device_of_its_tensors() -> None:
    x = Interval(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    assert (x.shape, x.size(), x.size(1), x.dim(), x.ndim, len(x), x.numel()) == ((2, 3, 4), (2, 3, 4), 3, 3, 3, 2, 24)
    assert (x.dtype, x.device.type, x.is_floating_point(), x.requires_grad) == (torch.float32, "cpu", True, False)
    assert x.double().dtype == torch.float64
    assert not hasattr(x, "frobnicate")
    assert [part.shape for part in x] == [(3, 4), (3, 4)]


def test_a_change_in_place_shows_in_aliases_and_invalidates_views() -> None:
    x = Interval(-torch.ones(2, 3), torch.ones(2, 3))
    same, view = x, x.view(3, 2)
    assert x.relu_() is x
    assert same.lower.min() == 0
    with pytest.raises(NoBoundError, match="after another view"):
        view + 1
