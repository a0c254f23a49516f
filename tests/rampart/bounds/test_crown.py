"""Bounds of CROWN-IBP hold for every image in the box, are exact where they should be, and can be trained."""

import itertools
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

from rampart.bounds import Interval, box_logits, crown, crown_worst_logits, interval_logits
from rampart.networks import CNN5, CNN7, MNISTCNN, GatedMNISTCNN, Normalize
from tests.rampart.bounds.test_interval import randomize
from tests.rampart.networks.references import EACH_BLOCK, NARROW

conv = partial(nn.Conv2d, kernel_size=3, padding=1)


class Residual(nn.Module):
    def __init__(self, shortcut: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.layers = shortcut, nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        return F.relu(self.layers(x) + self.shortcut(x))


class Uses(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    return randomize(nn.BatchNorm2d(channels))


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 4))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), head(9)),
    "conv": lambda: nn.Sequential(conv(1, 4), nn.ReLU(True), conv(4, 6, stride=2, dilation=2, groups=2), head(24)),
    "same": lambda: nn.Sequential(conv(1, 4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding="same"), nn.ReLU(), head(72)),
    "transposed": lambda: nn.Sequential(conv(1, 4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.ReLU(), head(288)),
    "batchnorm": lambda: nn.Sequential(
        conv(1, 4), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(), head(8)
    ),
    "leaky": lambda: nn.Sequential(conv(1, 4), nn.LeakyReLU(0.2, True), conv(4, 2), nn.LeakyReLU(0.05), head(72)),
    "falling": lambda: nn.Sequential(conv(1, 4), nn.LeakyReLU(-0.3), conv(4, 2), nn.ReLU(), head(72)),
    "max pool": lambda: nn.Sequential(conv(1, 4), nn.MaxPool2d(2), nn.ReLU(), conv(4, 4), nn.MaxPool2d(3), head(4)),
    "windows": lambda: nn.Sequential(conv(1, 4), nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True), nn.ReLU(), head(36)),
    "average": lambda: nn.Sequential(conv(1, 4), nn.AvgPool2d(2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), head(16)),
    "residual": lambda: nn.Sequential(
        conv(1, 4), nn.ReLU(), Residual(nn.Identity(), conv(4, 4), norm(), nn.ReLU(), conv(4, 4)),
        Residual(nn.Conv2d(4, 6, 1, 2), conv(4, 6, stride=2), nn.ReLU(), conv(6, 6)), head(54),
    ),
    "pad": lambda: nn.Sequential(
        nn.ZeroPad2d((1, 0, 2, -1)), conv(1, 4), nn.ReLU(), nn.ReflectionPad2d(1), nn.ReLU(), head(324)
    ),
    "normalize": lambda: nn.Sequential(Normalize([0.4], [0.2]), conv(1, 4), nn.ReLU(), head(144)),
    "clamp": lambda: nn.Sequential(
        conv(1, 4), nn.Hardtanh(-0.1, 0.2), conv(4, 4), nn.ReLU6(), conv(4, 4),
        Uses(lambda x: x.clamp(max=0.1).clamp_min(-0.2) + torch.clamp(x, torch.zeros(()), torch.ones(()))), head(144),
    ),
    "curved": lambda: nn.Sequential(conv(1, 4), nn.Tanh(), conv(4, 4), nn.GELU(), nn.ReLU(), head(144)),
    "shapes": lambda: nn.Sequential(
        conv(1, 4), nn.ReLU(), Uses(lambda x: torch.cat([x[:, 1:], 2 - x.mean(1, keepdim=True)], 1).transpose(2, 3)),
        nn.ReLU(), Uses(lambda x: torch.stack(x.chunk(2, 1), 1).sum(1) * torch.linspace(-1, 1, 6).double()), head(72),
    ),
    "two inputs": lambda: nn.Sequential(
        conv(1, 4), nn.ReLU(), Uses(lambda x: (x - 0.1).view_as(x) + torch.clamp(x, -x, 2 * x)), head(144)
    ),
    "product": lambda: nn.Sequential(conv(1, 4), nn.ReLU(), Uses(lambda x: x * x.mean((2, 3), True)), head(144)),
    "last": lambda: nn.Sequential(conv(1, 4), nn.ReLU(), head(144), nn.ReLU()),
    "one image": lambda: nn.Sequential(nn.Flatten(), Uses(lambda x: torch.stack([F.relu(i) for i in x])), head(36)),
}  # fmt: skip


CERTIFIED = [partial(CNN7, width=2, hidden=8), partial(CNN5, width=2, hidden=8, levels=((0.3, 0.7), (0.4, 0.5)))]


def compute_margins(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    logits = network(images)
    return logits - logits.gather(1, labels[:, None])


def find_points(network: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, labels: Tensor) -> list[Tensor]:
    """Return points of the box: random ones, corners, and ascents on the margin of each class."""
    shares = [torch.rand_like(lower) for _ in range(3)]
    points = [lower, upper, *(lower + (upper - lower) * share for share in (*shares, *(x.round() for x in shares)))]
    for number in range(4):
        point = points[2].clone()
        for share in (0.5, 0.25, 0.1):
            point.requires_grad_()
            (grad,) = torch.autograd.grad(compute_margins(network, point, labels)[:, number].sum(), point)
            point = (point + share * (upper - lower) * grad.sign()).clamp(lower, upper).detach()
        points += [point, torch.where(grad > 0, upper, lower)]
    return points


def check_bounds(
    network: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, labels: Tensor, bounds: Tensor
) -> None:
    assert (bounds.gather(1, labels[:, None]) == 0).all()
    for point in find_points(network, lower, upper, labels):
        assert (compute_margins(network, point, labels) <= bounds + 1e-9).all()


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=3, deadline=None)
@given(eps=st.floats(0, 0.5), seed=st.integers(0, 2**32 - 1))
def test_bounds_hold_for_every_image_in_the_box(name: str, eps: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = LAYERS[name]().double().eval()
    images, labels = torch.rand(3, 1, 6, 6).double(), torch.randint(0, 4, (3,))
    bounds = crown_worst_logits(interval_logits(network, images, eps, trace=True), labels)
    check_bounds(network, (images - eps).clamp(0, 1), (images + eps).clamp(0, 1), labels, bounds)


@settings(max_examples=4, deadline=None)
@given(name=st.sampled_from(["batchnorm", "residual"]), eps=st.floats(0, 0.5), seed=st.integers(0, 2**32 - 1))
def test_bounds_hold_for_batchnorm_by_the_statistics_of_the_clean_batch(name: str, eps: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = LAYERS[name]().double().train()
    images, labels = torch.rand(3, 1, 6, 6).double(), torch.randint(0, 4, (3,))

    def network_of_clean(x: Tensor) -> Tensor:
        return box_logits(network, x, x, clean=images).lower

    bounds = crown_worst_logits(interval_logits(network, images, eps, clean=images, trace=True), labels)
    check_bounds(network_of_clean, (images - eps).clamp(0, 1), (images + eps).clamp(0, 1), labels, bounds)


@pytest.mark.parametrize("make", [MNISTCNN, GatedMNISTCNN, *CERTIFIED, *(NARROW[name] for name in EACH_BLOCK)])
def test_bounds_hold_for_the_networks(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network = make().double().eval().requires_grad_(False)
    images, labels = torch.rand(2, *network.image_shape).double(), torch.tensor([3, 0])
    with torch.no_grad():
        interval = interval_logits(network, images, 0.004, trace=True)
        bounds = crown_worst_logits(interval, labels)
    check_bounds(network, (images - 0.004).clamp(0, 1), (images + 0.004).clamp(0, 1), labels, bounds)
    assert bounds.sum() < interval.worst_logits(labels).sum()


def test_bounds_of_affine_networks_are_exact() -> None:
    network = nn.Sequential(
        conv(1, 4), norm(), nn.AvgPool2d(2), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(32, 6), head(6)
    ).double()
    images, labels = torch.rand(3, 1, 6, 6).double().requires_grad_(), torch.tensor([0, 3, 1])
    bounds = crown_worst_logits(interval_logits(network, images.detach(), 0.1, trace=True), labels)
    for number in range(4):
        (grad,) = torch.autograd.grad(compute_margins(network, images, labels)[:, number].sum(), images)
        worst = torch.where(grad > 0, images + 0.1, images - 0.1).clamp(0, 1)
        torch.testing.assert_close(bounds[:, number], compute_margins(network, worst, labels)[:, number])


@pytest.mark.parametrize("eps", [0.001, 0.1])
def test_bounds_are_exact_where_no_relu_changes_its_sign(eps: float) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)).double()
    images, labels = torch.rand(2, 6).double() * 0.8 + 0.1, torch.tensor([0, 2])
    interval = interval_logits(network, images, eps, trace=True)
    bounds = torch.minimum(crown_worst_logits(interval, labels), interval.worst_logits(labels))
    corners = torch.tensor(list(itertools.product((-eps, eps), repeat=6)), dtype=torch.float64)
    margins = torch.stack([compute_margins(network, images + corner, labels) for corner in corners]).amax(0)
    assert (margins <= bounds + 1e-12).all()
    torch.testing.assert_close(bounds, margins, atol=1e-12 if eps == 0.001 else 0.2, rtol=0)
    assert (bounds < interval.worst_logits(labels) - 1e-4).any()


def test_at_eps_0_the_bounds_are_the_margins() -> None:
    for name in set(LAYERS) - {"curved", "product", "two inputs"}:
        network = LAYERS[name]().double().eval()
        images, labels = torch.rand(3, 1, 6, 6).double(), torch.tensor([0, 3, 1])
        bounds = crown_worst_logits(interval_logits(network, images, 0.0, trace=True), labels)
        torch.testing.assert_close(bounds, compute_margins(network, images, labels))


def test_folding_batchnorm_into_the_convolution_keeps_the_bounds() -> None:
    plain, batchnorm, rest = conv(1, 4).double(), norm().double(), nn.Sequential(nn.ReLU(), head(144)).double()
    folded = nn.utils.fuse_conv_bn_eval(plain.eval(), batchnorm)
    images, labels = torch.rand(3, 1, 6, 6).double(), torch.tensor([0, 3, 1])
    one, other = (
        crown_worst_logits(interval_logits(nn.Sequential(*layers, rest), images, 0.1, trace=True), labels)
        for layers in ((plain, batchnorm), (folded,))
    )
    torch.testing.assert_close(one, other)


MIXED: dict[str, Callable[[Any], Any]] = {
    "moved": lambda x: x.transpose(0, 1),
    "flipped": lambda x: x.flip(0),
    "centred": lambda x: x - x.mean(0, keepdim=True),
    "first": lambda x: x + x[:1],
    "matmul": lambda x: torch.tensor([[0.5, -1, 0], [0, 2, 1], [1, 1, 1]]) @ x,
    "axes": lambda x: x.view(1, 3, 3).permute(2, 0, 1).flatten(1),
}


@pytest.mark.parametrize("name", MIXED)
def test_bounds_hold_for_operations_that_mix_images(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Uses(MIXED[name]), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    images, labels = torch.rand(3, 3), torch.tensor([0, 2, 1])
    bounds = crown_worst_logits(interval_logits(network, images, 0.2, trace=True), labels)
    for _ in range(200):
        point = (images + 0.2 * (2 * torch.rand(3, 3) - 1).sign()).clamp(0, 1)
        assert (compute_margins(network, point, labels) <= bounds + 1e-5).all()


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_bounds_are_their_derivatives(training: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        conv(1, 2), norm(2), nn.ReLU(), nn.MaxPool2d(2), Residual(nn.Identity(), conv(2, 2), norm(2)), nn.AvgPool2d(2),
        nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(2, 3), nn.Hardtanh(-0.2, 0.5), nn.Linear(3, 3),
    ).double().train(training)  # fmt: skip
    images, labels = torch.rand(2, 1, 4, 4).double(), torch.tensor([0, 2])
    names, weights = zip(*network.named_parameters(), strict=True)

    def bound(*values: Tensor) -> Tensor:
        def call(x: Any) -> Any:
            return functional_call(network, dict(zip(names, values, strict=True)), (x,))

        lower, upper = (images - 0.1).clamp(0, 1), (images + 0.1).clamp(0, 1)
        logits = call(Interval(lower, upper, images, trace=True))
        return crown_worst_logits(logits, labels)

    assert bound(*weights).requires_grad
    assert torch.autograd.gradcheck(bound, weights, fast_mode=True)


def test_bounds_are_the_same_without_gradients_by_chunks_and_in_inference_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("residual", "shapes", "max pool"):
        network = LAYERS[name]().double().eval()
        images, labels = torch.rand(3, 1, 6, 6).double(), torch.tensor([0, 3, 1])
        expected = crown_worst_logits(interval_logits(network, images, 0.1, trace=True), labels)
        monkeypatch.setattr(crown, "CHUNK_ELEMENTS", 1)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                bounds = crown_worst_logits(interval_logits(network, images.clone(), 0.1, trace=True), labels)
            assert not bounds.requires_grad
            torch.testing.assert_close(bounds, expected.detach())


def test_an_empty_batch_and_a_single_class_have_bounds() -> None:
    for images, classes in ((0, 4), (2, 1)):
        interval = interval_logits(nn.Linear(3, classes), torch.zeros(images, 3), 0.1, trace=True)
        assert (
            crown_worst_logits(interval, torch.zeros(images, dtype=torch.int64)).tolist() == [[0.0] * classes] * images
        )


def test_an_interval_without_its_operations_raises() -> None:
    with pytest.raises(ValueError, match="compute it with trace=True"):
        crown_worst_logits(Interval(torch.zeros(1, 2), torch.ones(1, 2)), torch.tensor([0]))
