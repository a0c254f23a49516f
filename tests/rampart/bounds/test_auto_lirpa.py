"""Bounds equal those of auto_LiRPA where it is installed, from its repository: the release on PyPI does not import."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.bounds import crown_worst_logits, interval_logits
from tests.rampart.bounds.test_crown import LAYERS, conv, head

auto_lirpa: Any = pytest.importorskip("auto_LiRPA", reason="compares with auto_LiRPA, which no release installs")
# Left out: layers that it can't load, bounds otherwise (LeakyReLU's slope) or by curves.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    name: LAYERS[name] for name in ("linear", "conv", "batchnorm", "max pool", "residual", "normalize", "last")
} | {"average": lambda: nn.Sequential(conv(1, 4), nn.AvgPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), head(4))}


@pytest.fixture(autouse=True)
def default_to_float64() -> Iterator[None]:
    """auto_LiRPA creates some of its tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bound_by_auto_lirpa(network: nn.Module, images: Tensor, eps: float, labels: Tensor, method: str) -> Tensor:
    box = auto_lirpa.PerturbationLpNorm(
        norm=float("inf"), x_L=(images - eps).clamp(0, 1), x_U=(images + eps).clamp(0, 1)
    )
    unit = torch.eye(4, dtype=images.dtype)
    margins = unit[labels][:, None] - unit  # (N, C, C)
    bounded = auto_lirpa.BoundedModule(network, torch.zeros_like(images), bound_opts={"conv_mode": "matrix"})
    inputs = auto_lirpa.BoundedTensor(images, box)
    lower, _ = bounded.compute_bounds(x=(inputs,), C=margins, method=method, bound_upper=False)
    return -torch.as_tensor(lower)


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(network.train().parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_equal_those_of_auto_lirpa(name: str, trained: bool) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    images, labels = torch.rand(32, 1, 6, 6), torch.arange(4).repeat(8)
    if trained:
        train(network, images, labels)
    network.eval()
    images, labels = images[:5], labels[:5]
    for eps in (0.01, 0.1):
        with torch.no_grad():
            interval = interval_logits(network, images, eps, trace=True)
            ours = {"IBP": interval.worst_logits(labels), "CROWN-IBP": crown_worst_logits(interval, labels)}
            for method, bounds in ours.items():
                theirs = bound_by_auto_lirpa(network, images, eps, labels, method)
                difference = ((bounds - theirs).abs().max() / theirs.abs().max()).item()
                print(f"{name}, trained {trained}, eps {eps}, {method}: relative difference {difference:.1e}")
                assert difference < 1e-9
