"""PGD with steps that move whole blocks of pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.attacks import PGD
from rampart.attacks.random import get_share


@dataclass(frozen=True, kw_only=True)
class BlockPGD(PGD):
    """PGD whose steps move square blocks of pixels, each as one.

    A network trained at a large eps is robust to changes of single pixels and is fooled by changes of whole patches.
    Square finds such changes (Andriushchenko et al. 2020), and the gradient of a block shows them better than the
    gradients of its pixels.

    Attributes:
        block_sides: Block sides in pixels, spread over a run from the first to the last: ``(7, 5, 3, 2, 1)`` goes from
            coarse to fine. A side above 1 needs images ``(N, C, H, W)``.

    Raises:
        ValueError: If there is no side or one is not a whole number from 1, and as PGD.
    """

    block_sides: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block_sides or not all(isinstance(side, int) and side >= 1 for side in self.block_sides):
            raise ValueError(f"block_sides must be whole numbers from 1, at least one, got {self.block_sides!r}")

    def step_gradient(self, grad: Tensor, step: int, eps: float, generator: torch.Generator | None) -> Tensor:
        """Return the mean gradient of each pixel's block; see :meth:`rampart.attacks.PGD.step_gradient`."""
        side = self.block_sides[step * len(self.block_sides) // self.steps_at(eps)]
        return grad if side == 1 else block_means(grad, side, generator)


def block_means(grad: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Replace each pixel's gradient by the mean over its block: the gradient of moving the block as one.

    The blocks tile the image from a random corner, a new one for each call, so that no grid is special.

    Args:
        grad: Gradient ``(N, C, H, W)``, float.
        side: Block side in pixels; blocks at the border may be smaller.
        generator: Source of the random corner, on the gradient's device; the global one if None.

    Returns:
        Gradient with the shape and dtype of ``grad``.
    """
    corner = torch.rand(2, generator=get_share(generator).generator, device=grad.device).mul_(side).long()
    down, across = (_averaging(size, side, at, grad) for size, at in zip(grad.shape[-2:], corner, strict=True))
    return down @ grad @ across.T


def _averaging(size: int, side: int, corner: Tensor, like: Tensor) -> Tensor:
    """Return the matrix ``(size, size)`` that averages the blocks along one axis."""
    block = torch.div(torch.arange(size, device=like.device) + corner, side, rounding_mode="floor")
    same = (block[:, None] == block).to(like.dtype)
    return same / same.sum(1, keepdim=True)
