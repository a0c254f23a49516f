import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.kernels.convolution import BLOCK, pooled_convolution


def plain(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(F.conv2d(images, weight, bias), 2))


def value_and_gradients(function: object, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)  # type: ignore[operator]
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)]


@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 6])
@pytest.mark.parametrize(("height", "width", "k", "channels"), [(28, 28, 5, 32), (8, 12, 3, 5), (6, 6, 5, 2)])
def test_equals_convolution_pooling_and_relu(n: int, height: int, width: int, k: int, channels: int) -> None:
    inputs = (torch.rand(n, 1, height, width), torch.randn(channels, 1, k, k), torch.randn(channels))
    doubles = [x.double() for x in inputs]
    for ours, expected in zip(
        value_and_gradients(pooled_convolution, *doubles), value_and_gradients(plain, *doubles), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_ties_are_broken_as_max_pooling_breaks_them() -> None:
    # Whole numbers make candidates exactly equal.
    images = torch.randint(2, (40, 1, 28, 28)).double()
    weight, bias = torch.randint(-1, 2, (32, 1, 5, 5)).double(), torch.zeros(32).double()
    for ours, expected in zip(
        value_and_gradients(pooled_convolution, images, weight, bias),
        value_and_gradients(plain, images, weight, bias),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_gradients_of_noncontiguous_images_from_a_slice_of_the_output() -> None:
    images = torch.rand(3, 2, 28, 28).double()[:, 1:]  # not contiguous
    weight, bias = torch.randn(4, 1, 5, 5).double(), torch.randn(4).double()
    images.requires_grad_()
    gradients = [
        torch.autograd.grad(f(images, weight, bias)[:, 1:, ::2].sum(), images)[0] for f in (pooled_convolution, plain)
    ]
    torch.testing.assert_close(*gradients)


def test_second_derivatives_equal_those_of_plain_operations() -> None:
    inputs = torch.rand(2, 1, 12, 12).double(), torch.randn(4, 1, 5, 5).double(), torch.randn(4).double()
    results = []
    for function in (pooled_convolution, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = function(*leaves).pow(3).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        assert isinstance(penalty, Tensor)
        results.append([*first, *torch.autograd.grad(penalty, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_call_on_the_meta_device_does_not_affect_later_calls() -> None:
    with torch.device("meta"):
        pooled_convolution(torch.rand(1, 1, 10, 10), torch.rand(2, 1, 7, 7), torch.rand(2))
    inputs = torch.rand(1, 1, 10, 10), torch.rand(2, 1, 7, 7), torch.rand(2)
    torch.testing.assert_close(pooled_convolution(*inputs), plain(*inputs))


def test_under_autocast_it_computes_in_float32() -> None:
    inputs = torch.rand(2, 1, 28, 28), torch.randn(4, 1, 5, 5), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooled_convolution(*inputs)
    torch.testing.assert_close(pooled, plain(*inputs))
