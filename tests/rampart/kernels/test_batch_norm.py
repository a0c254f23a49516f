"""BatchNorm that processes share, in a group of one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rampart.kernels import sync_batch_norm


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((6, 3), torch.contiguous_format),
        ((4, 3, 5), torch.contiguous_format),
        ((4, 3, 5, 2), torch.contiguous_format),
        ((4, 3, 5, 2), torch.channels_last),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_one_process_gets_torchs_result_gradients_and_statistics(
    shape: tuple[int, ...], affine: bool, memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    images, weighting = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    results = []
    for function in (F.batch_norm, sync_batch_norm):
        leaf = images.clone(memory_format=memory_format).requires_grad_()
        scale, shift = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.0, 2, 3], [3.0, 4, 5]))
        mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        weight, bias = (scale, shift) if affine else (None, None)
        output: Tensor = function(leaf, mean, variance, weight, bias, True, 0.3, 1e-3)
        leaves = [leaf, scale, shift] if affine else [leaf]
        gradients = torch.autograd.grad((output.square() * weighting).sum(), leaves)
        results.append([output.detach(), mean, variance, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_another_dtype_than_the_weights_is_normalised_in_float32() -> None:
    images = torch.rand(8, 3, 4, 4).to(torch.bfloat16)
    output = sync_batch_norm(images, None, None, torch.ones(3), torch.zeros(3))
    assert output.dtype == torch.bfloat16
    exact = F.batch_norm(images.float(), None, None, torch.ones(3), torch.zeros(3), True)
    torch.testing.assert_close(output.float(), exact, rtol=1e-2, atol=1e-2)
