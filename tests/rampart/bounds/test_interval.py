from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rampart.bounds import Interval, NoBoundError
from rampart.networks import Normalize

OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    "dilated": lambda: nn.Conv2d(4, 2, 3, dilation=2, bias=False),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 49, 5)),
    "batchnorm": lambda: randomize(nn.BatchNorm2d(4)),
    "plain batchnorm": lambda: randomize(nn.BatchNorm2d(4, affine=False)),
}


def randomize(batchnorm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return the BatchNorm with random statistics and weights of both signs, so that it is not the identity."""
    assert batchnorm.running_mean is not None
    assert batchnorm.running_var is not None
    nn.init.normal_(batchnorm.running_mean)
    nn.init.uniform_(batchnorm.running_var, 0.2, 2)
    if batchnorm.affine:
        nn.init.normal_(batchnorm.weight)
        nn.init.normal_(batchnorm.bias)
    return batchnorm.eval()


@pytest.mark.parametrize("name", OPERATIONS)
def test_bounds_of_affine_operations_are_tight(name: str) -> None:
    """At the corner given by the sign of an output's gradient, the output equals its bound."""
    module = OPERATIONS[name]().double()
    lower = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    upper = lower + torch.rand_like(lower)
    bounds: Any = module(Interval(lower, upper))
    point = lower.clone().requires_grad_()
    for place in (0, 4, -1):
        (grad,) = torch.autograd.grad(module(point).flatten(1)[:, place].sum(), point)
        highest, lowest = torch.where(grad > 0, upper, lower), torch.where(grad > 0, lower, upper)
        torch.testing.assert_close(module(highest).flatten(1)[:, place], bounds.upper.flatten(1)[:, place])
        torch.testing.assert_close(module(lowest).flatten(1)[:, place], bounds.lower.flatten(1)[:, place])


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout().eval(),
    ],
)
def test_increasing_operations_map_both_bounds(module: nn.Module) -> None:
    lower = torch.randn(2, 4, 7, 7)
    upper = lower + torch.rand_like(lower)
    bounds: Any = module(Interval(lower.clone(), upper.clone()))
    assert torch.equal(bounds.lower, module(lower))
    assert torch.equal(bounds.upper, module(upper))


def test_adding_intervals_adds_their_bounds() -> None:
    one = Interval(torch.tensor([1.0]), torch.tensor([2.0]))
    other = Interval(torch.tensor([-3.0]), torch.tensor([0.5]))
    total = one + other
    assert (total.lower.item(), total.upper.item()) == (-2, 2.5)
    alias = one
    one += other
    assert (alias.lower.item(), alias.upper.item()) == (-2, 2.5)


def test_operations_after_the_last_linear_layer_are_bounded_too() -> None:
    linear, labels = nn.Linear(4, 3).double(), torch.tensor([0, 1])
    box = Interval(torch.zeros(2, 4).double(), torch.ones(2, 4).double())
    shift = torch.tensor([0.0, 5.0, 0.0]).double()
    added: Any = linear(box)
    added += shift
    cut: Any = linear(box)
    nn.ReLU(inplace=True)(cut)
    for point in torch.rand(50, 2, 4, generator=torch.Generator().manual_seed(0)).double():
        for logits, bounds in ((linear(point) + shift, added), (linear(point).relu(), cut)):
            assert (logits - logits.gather(1, labels[:, None]) <= bounds.worst_logits(labels) + 1e-12).all()


def test_dividing_by_a_negative_number_swaps_the_bounds() -> None:
    interval = Interval(torch.tensor([-1.0]), torch.tensor([2.0])) / -2
    assert interval.lower == -1
    assert interval.upper == 0.5
    normalized = Normalize([0.5], [0.25])(Interval(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)))
    assert (normalized.lower.item(), normalized.upper.item()) == (-2, 2)


@pytest.mark.parametrize("function", [torch.sin, F.log_softmax, torch.sort, torch.fft.fft])
def test_a_function_without_a_rule_raises_with_its_name(function: Any) -> None:
    with pytest.raises(NoBoundError, match=f"no interval bound for {function.__name__}"):
        function(Interval(torch.zeros(2, 2), torch.ones(2, 2)))


def test_dropout_in_train_mode_raises() -> None:
    with pytest.raises(TypeError, match="dropout in train mode"):
        nn.Dropout()(Interval(torch.zeros(2), torch.ones(2)))
