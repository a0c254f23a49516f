"""A one-channel convolution with 2x2 max-pooling and ReLU, in the order that a CPU is fastest in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.kernels.fast_path import can_skip_calls, is_traced_or_transformed

BLOCK = 32  # Images whose convolution stays in the cache between the matrix product and the pooling.


def pooled_convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same function as ``F.relu(F.max_pool2d(F.conv2d(images, weight, bias), 2))``, gradients and ties included.

    A pooling window looks at ``k + 1`` pixels squared, so one product of all windows with four shifted copies of
    the weight gives what it chooses from: fewer numbers to gather than one patch for each pixel, and a result in
    channels_last with the four candidates side by side. Blocks of images go through product and pooling one after
    another, so the convolution before pooling, the largest array of the network, is never held as a whole.

    Under autocast it computes in float32. A second derivative is right, by way of ordinary operations.

    Args:
        images: ``(N, 1, H, W)``, float32 or float64, on the CPU; H and W are even.
        weight: ``(C, 1, k, k)``, like the images in dtype; k is odd.
        bias: ``(C,)``, like the images in dtype.

    Returns:
        ``(N, C, (H - k + 1) / 2, (W - k + 1) / 2)``, channels_last.
    """
    with torch.autocast("cpu", enabled=False):
        shifts = _shifts(weight.shape[-1] + 1, weight)
        shifted = torch.matmul(shifts, weight.flatten(1).t()).flatten(1)  # (size^2, 4 C)
        pooled: Tensor = _PooledConvolution.apply(images, shifted, bias)
    return pooled


def can_use_pooled_convolution(conv: nn.Conv2d, images: object) -> bool:
    """Return True if :func:`pooled_convolution` can replace this convolution for these images.

    False for anything but a tensor, such as the intervals of :mod:`rampart.bounds`.
    """
    return (
        can_skip_calls(images, conv)
        and isinstance(images, Tensor)
        and images.device.type == "cpu"
        and images.ndim == 4
        and images.shape[1] == conv.in_channels == 1
        and images.shape[2] % 2 == images.shape[3] % 2 == 0
        and images.dtype == conv.weight.dtype
        and conv.bias is not None
    )


def _shifts(size: int, like: Tensor) -> Tensor:
    """Return which element of the weight is multiplied with which pixel of a window, for its four places in it.

    Returns:
        ``(size^2, 4, (size - 1)^2)``, zeros and ones.
    """
    pixels = torch.eye(size**2, dtype=like.dtype, device=like.device).view(-1, 1, size, size)
    return F.unfold(pixels, size - 1).mT.contiguous()


class _PooledConvolution(torch.autograd.Function):
    """``(images, shifted weight, bias) -> pooled``; see :func:`pooled_convolution`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, shifted: Tensor, bias: Tensor) -> Tensor:
        windows = _windows(images, shifted)
        n, height, width = windows.shape[:3]
        pooled = images.new_empty(n, height * width, 1, len(bias)).permute(0, 3, 1, 2)
        chosen = torch.empty_like(pooled, dtype=torch.int64)
        gathered, candidates = _scratch(windows, shifted)
        for part in _blocks(n):
            rows = _gather(windows[part], gathered)
            products = torch.mm(rows, shifted, out=candidates[: len(rows)])
            torch.ops.aten.max_pool2d_with_indices.out(
                _fours(products, height * width), (4, 1), out=pooled[part], indices=chosen[part]
            )
            pooled[part].add_(bias[:, None, None]).relu_()
        ctx.save_for_backward(images, shifted, bias, chosen, pooled)
        return pooled.view(n, len(bias), height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, shifted, bias, chosen, pooled = ctx.saved_tensors
        # With create_graph, someone will differentiate this; is_grads_batched hands over many gradients as one.
        if torch.is_grad_enabled() or is_traced_or_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return _differentiable_backward((images, shifted, bias), ctx.needs_input_grad, grad)
        windows = _windows(images, shifted)
        n, height, width = windows.shape[:3]
        grad = grad.reshape(pooled.shape)
        of_images = torch.empty_like(images) if ctx.needs_input_grad[0] else None
        of_shifted = torch.zeros_like(shifted) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(shifted[0, : pooled.shape[1]]) if ctx.needs_input_grad[2] else None
        gathered, candidates = _scratch(windows, shifted)
        for part in _blocks(n):
            of_pooled = torch.ops.aten.threshold_backward(grad[part], pooled[part], 0)  # of ReLU
            products = candidates[: len(of_pooled) * height * width]
            fours = _fours(products, height * width)
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
                of_pooled, fours, (4, 1), (4, 1), (0, 0), (1, 1), False, chosen[part], grad_input=fours
            )
            if of_bias is not None:
                of_bias += of_pooled.sum((0, 2, 3))
            if of_shifted is not None:
                of_shifted.addmm_(_gather(windows[part], gathered).t(), products)
            if of_images is not None:
                columns = gathered[: len(products)].view(-1, len(shifted), height * width)
                per_image = products.view(len(columns), height * width, -1).mT
                torch.bmm(shifted.expand(len(columns), -1, -1), per_image, out=columns)
                _fold(columns, of_images[part])
        return of_images, of_shifted, of_bias


def _differentiable_backward(
    inputs: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients from the same function in ordinary operations: with a graph of their own, where graphs are on."""
    images, shifted, bias = inputs
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        windows = _windows(images, shifted)
        products = windows.flatten(3) @ shifted  # (N, H', W', 4 C)
        pooled = F.relu(products.view(*windows.shape[:3], 4, -1).max(3).values + bias).permute(0, 3, 1, 2)
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(pooled, wanted, grad, create_graph=create_graph))
    return tuple(next(gradients) if need else None for need in needed)


def _windows(images: Tensor, shifted: Tensor) -> Tensor:
    """View the pixels of each pooling window: ``(N, H', W', k + 1, k + 1)``."""
    size = int(len(shifted) ** 0.5)
    return images[:, 0].unfold(1, size, 2).unfold(2, size, 2)


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]


def _scratch(windows: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
    """Room for one block's windows and products, used by all blocks: fresh memory for each costs more than the work."""
    rows = len(windows[:BLOCK]) * windows.shape[1] * windows.shape[2]
    return windows.new_empty(rows, shifted.shape[0]), windows.new_empty(rows, shifted.shape[1])


def _gather(windows: Tensor, gathered: Tensor) -> Tensor:
    rows = gathered[: windows.shape[:3].numel()]
    rows.view(windows.shape).copy_(windows)
    return rows


def _fours(products: Tensor, windows: int) -> Tensor:
    """Products ``(N * windows, 4 C)`` as channels_last images ``(N, C, 4 * windows, 1)`` to pool down their columns."""
    return products.view(-1, 4 * windows, 1, products.shape[1] // 4).permute(0, 3, 1, 2)


def _fold(columns: Tensor, images: Tensor) -> None:
    """Write into ``images`` what ``F.fold(columns, (H, W), k + 1, stride=2)`` returns.

    In units of 2x2 pixels the windows lie one apart, so each shift of them is added as one block: across, then down.
    """
    n, height, width = len(images), images.shape[2] // 2, images.shape[3] // 2
    shifts = int(columns.shape[1] ** 0.5) // 2
    down, across = height - shifts + 1, width - shifts + 1
    columns = columns.view(n, shifts, 2, shifts, 2, down, across)
    wide = columns.new_zeros(n, shifts, 2, 2, down, width)
    for shift in range(shifts):
        wide[..., shift : shift + across] += columns[:, :, :, shift]
    whole = columns.new_zeros(n, 2, 2, height, width)
    for shift in range(shifts):
        whole[:, :, :, shift : shift + down] += wide[:, shift]
    images.view(n, height, 2, width, 2).copy_(whole.permute(0, 3, 1, 4, 2))
