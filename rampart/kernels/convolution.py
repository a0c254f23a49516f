"""A one-channel convolution with 2x2 max-pooling and ReLU, fast on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.kernels.fast_path import can_skip_calls, is_traced_or_transformed

BLOCK = 32  # Images per block: their convolution stays in the cache between the matrix product and the pooling.


def pooled_convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``F.relu(F.max_pool2d(F.conv2d(images, weight, bias), 2))``, with the same gradients, also at ties.

    A pooling window depends on ``(k + 1) x (k + 1)`` pixels. One product of all windows with four shifted copies of the
    weight gives its four candidates. It gathers fewer numbers than one patch per pixel would, and its result is
    channels_last with the four candidates side by side. Product and pooling run on blocks of images, so the convolution
    before pooling, the largest array of the network, is never held as a whole.

    Under autocast it computes in float32. Second derivatives are computed by torch's ordinary operations.

    Args:
        images: ``(N, 1, H, W)``, float32 or float64, on the CPU; H and W are even.
        weight: ``(C, 1, k, k)``, of the images' dtype; k is odd.
        bias: ``(C,)``, of the images' dtype.

    Returns:
        ``(N, C, (H - k + 1) / 2, (W - k + 1) / 2)``, channels_last.
    """
    with torch.autocast("cpu", enabled=False):
        shifts = _shift_matrix(weight.shape[-1] + 1, weight)
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


def _shift_matrix(size: int, like: Tensor) -> Tensor:
    """Return the matrix that shifts a kernel to its four positions in a pooling window.

    Args:
        size: Side of the window, ``k + 1``.
        like: A tensor of the wanted dtype and device.

    Returns:
        ``(size^2, 4, (size - 1)^2)``, zeros and ones: 1 where a pixel of the window is multiplied by an element of the
        kernel.
    """
    pixels = torch.eye(size**2, dtype=like.dtype, device=like.device).view(-1, 1, size, size)
    return F.unfold(pixels, size - 1).mT.contiguous()


class _PooledConvolution(torch.autograd.Function):
    """``(images, shifted weight, bias) -> pooled``; see :func:`pooled_convolution`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, shifted: Tensor, bias: Tensor) -> Tensor:
        windows = _view_windows(images, shifted)
        n, height, width = windows.shape[:3]
        pooled = images.new_empty(n, height * width, 1, len(bias)).permute(0, 3, 1, 2)
        chosen = torch.empty_like(pooled, dtype=torch.int64)
        gathered, candidates = _allocate_scratch(windows, shifted)
        for part in _block_slices(n):
            rows = _gather(windows[part], gathered)
            products = torch.mm(rows, shifted, out=candidates[: len(rows)])
            torch.ops.aten.max_pool2d_with_indices.out(
                _view_candidates(products, height * width), (4, 1), out=pooled[part], indices=chosen[part]
            )
            pooled[part].add_(bias[:, None, None]).relu_()
        ctx.save_for_backward(images, shifted, bias, chosen, pooled)
        return pooled.view(n, len(bias), height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, shifted, bias, chosen, pooled = ctx.saved_tensors
        # create_graph differentiates this gradient again, and is_grads_batched passes many gradients at once.
        if torch.is_grad_enabled() or is_traced_or_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad):
            return _differentiable_backward((images, shifted, bias), ctx.needs_input_grad, grad)
        windows = _view_windows(images, shifted)
        n, height, width = windows.shape[:3]
        grad = grad.reshape(pooled.shape)
        image_grad = torch.empty_like(images) if ctx.needs_input_grad[0] else None
        shifted_grad = torch.zeros_like(shifted) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(shifted[0, : pooled.shape[1]]) if ctx.needs_input_grad[2] else None
        gathered, candidates = _allocate_scratch(windows, shifted)
        for part in _block_slices(n):
            pooled_grad = torch.ops.aten.threshold_backward(grad[part], pooled[part], 0)  # through ReLU
            products = candidates[: len(pooled_grad) * height * width]
            by_window = _view_candidates(products, height * width)
            torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
                pooled_grad, by_window, (4, 1), (4, 1), (0, 0), (1, 1), False, chosen[part], grad_input=by_window
            )
            if bias_grad is not None:
                bias_grad += pooled_grad.sum((0, 2, 3))
            if shifted_grad is not None:
                shifted_grad.addmm_(_gather(windows[part], gathered).t(), products)
            if image_grad is not None:
                columns = gathered[: len(products)].view(-1, len(shifted), height * width)
                per_image = products.view(len(columns), height * width, -1).mT
                torch.bmm(shifted.expand(len(columns), -1, -1), per_image, out=columns)
                _fold(columns, image_grad[part])
        return image_grad, shifted_grad, bias_grad


def _differentiable_backward(
    inputs: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients by torch's ordinary operations; they can be differentiated if gradients are enabled."""
    images, shifted, bias = inputs
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        windows = _view_windows(images, shifted)
        products = windows.flatten(3) @ shifted  # (N, H', W', 4 C)
        pooled = F.relu(products.view(*windows.shape[:3], 4, -1).max(3).values + bias).permute(0, 3, 1, 2)
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(pooled, wanted, grad, create_graph=create_graph))
    return tuple(next(gradients) if need else None for need in needed)


def _view_windows(images: Tensor, shifted: Tensor) -> Tensor:
    """Return a view of the pixels of each pooling window, ``(N, H', W', k + 1, k + 1)``."""
    size = int(len(shifted) ** 0.5)
    return images[:, 0].unfold(1, size, 2).unfold(2, size, 2)


def _block_slices(n: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]


def _allocate_scratch(windows: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the windows and products that all blocks share: allocating them per block costs more than the work."""
    rows = len(windows[:BLOCK]) * windows.shape[1] * windows.shape[2]
    return windows.new_empty(rows, shifted.shape[0]), windows.new_empty(rows, shifted.shape[1])


def _gather(windows: Tensor, gathered: Tensor) -> Tensor:
    rows = gathered[: windows.shape[:3].numel()]
    rows.view(windows.shape).copy_(windows)
    return rows


def _view_candidates(products: Tensor, windows: int) -> Tensor:
    """View products ``(N * windows, 4 C)`` as channels_last images ``(N, C, 4 * windows, 1)`` for pooling."""
    return products.view(-1, 4 * windows, 1, products.shape[1] // 4).permute(0, 3, 1, 2)


def _fold(columns: Tensor, images: Tensor) -> None:
    """Write ``F.fold(columns, (H, W), k + 1, stride=2)`` into ``images``.

    In units of 2x2 pixels, neighbouring windows are one apart, so each shift is added as one block: across, then down.
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
