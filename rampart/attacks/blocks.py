"""Steps that move whole blocks of pixels."""

import torch
from torch import Tensor


def block_means(grad: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Replace each pixel's gradient by the mean over its block: the gradient of moving the block as one.

    The blocks tile the image from a corner that is drawn anew at each call, so that no grid is special.

    Args:
        grad: ``(N, C, H, W)``.
        side: Of a block, in pixels; those at the border may be smaller.
        generator: Source of the corner, on the gradient's device; the global one if None.

    Returns:
        Like ``grad``.
    """
    corner = torch.rand(2, generator=generator, device=grad.device).mul_(side).long()
    down, across = (_averaging(size, side, at, grad) for size, at in zip(grad.shape[-2:], corner, strict=True))
    return down @ grad @ across.T


def _averaging(size: int, side: int, corner: Tensor, like: Tensor) -> Tensor:
    """The matrix ``(size, size)`` that takes the mean over each block of a line."""
    block = torch.div(torch.arange(size, device=like.device) + corner, side, rounding_mode="floor")
    same = (block[:, None] == block).to(like.dtype)
    return same / same.sum(1, keepdim=True)
