import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent


class LinearModel(nn.Module):
    """Two logits that differ by ``w . x``, so that the largest gain of an attack is known exactly."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weight.flatten()
        return torch.stack([score, torch.zeros_like(score)], 1)


def small_network(num_classes: int = 10) -> Any:
    """Return a 28x28 network with all states that an attack could change: BatchNorm, dropout, frozen parameters."""
    network: Any = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )
    network[4].eval()
    network[0].bias.requires_grad_(False)
    return network


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Seed the random numbers of a test file while it is imported; ``_seed`` seeds those of its tests."""
    torch.manual_seed(0)
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``gpu`` without one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 28, 28, generator=generator)
    images[:4] = (images[:4] > 0.5).float()  # most of MNIST's pixels are 0 or 1
    return images


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(12) % 10


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """Use one core per test process and per process that tests start."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _signals() -> None:
    """Restore signals that the tests were started to ignore, as by nohup; started processes inherit this."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
