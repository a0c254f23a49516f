"""Perturbations that Square proposes: random changes of square windows, in l-inf and in L2."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rampart.attacks.eps import NormName
from rampart.attacks.norms import NORMS, Ball
from rampart.attacks.random import draw_below
from rampart.kernels import Memo


class Window:
    """A square window in each image.

    Args:
        corner: ``(M, 2)``, int64, zero-based row and column of the window's first pixel.
        side: Scalar, int64, side in pixels.
        adv: ``(M, C, H, W)``, the images.

    Attributes:
        rows: ``(M, H)``, int64, zero-based position of each image row in the window; negative above it, at least
            the side below it.
        columns: ``(M, W)``, int64, the same for columns.
        inside: ``(M, 1, H, W)``, of the images' dtype, 1 for the pixels in the window and 0 for the others. With it,
            :func:`torch.lerp` chooses between finite numbers, exactly, and faster on a CPU than a mask does.
    """

    def __init__(self, corner: Tensor, side: Tensor, adv: Tensor) -> None:
        self.rows, self.columns = (
            torch.arange(size, device=adv.device) - corner[:, axis, None] for axis, size in enumerate(adv.shape[2:])
        )
        rows, columns = (((at >= 0) & (at < side)).to(adv.dtype) for at in (self.rows, self.columns))
        self.inside = rows[:, None, :, None] * columns[:, None, None, :]

    def place(self, patterns: Tensor, which: Tensor) -> Tensor:
        """Place one pattern per image in the window, zero elsewhere; ``(M, 1, H, W)``.

        Args:
            patterns: ``(P, S, S)``, with S at least the side.
            which: ``(M,)``, int64, index of each image's pattern.
        """
        last = patterns.shape[-1] - 1
        rows, columns = self.rows.clamp(0, last)[:, :, None], self.columns.clamp(0, last)[:, None, :]
        return patterns[which[:, None, None], rows, columns][:, None] * self.inside


class Windows(ABC):
    """Starting points and proposals of Square. Every point is inside the ball and the box [0, 1]."""

    @abstractmethod
    def start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """Return a random starting point for each image."""

    @abstractmethod
    def side(self, share: float, height: int, width: int) -> int:
        """Return the side in pixels of a window that covers about this share of the image."""

    def corners(self, side: int, height: int, width: int) -> list[int]:
        """Return the numbers of rows and of columns in which a window of this side can begin."""
        return [height - side + 1, width - side + 1]

    @abstractmethod
    def counts(self, channels: int) -> list[int]:
        """Return how many random numbers a proposal needs per image, one count for each entry of :meth:`ends`."""

    @abstractmethod
    def ends(self, side: int, height: int, width: int) -> list[int]:
        """Return the ends, not included, of the random whole numbers for windows of this side."""

    @abstractmethod
    def ball(self, images: Tensor, eps: float) -> Ball:
        """Return what :meth:`move` needs of the balls of radius ``eps`` around images."""

    @abstractmethod
    def move(self, adv: Tensor, ball: Ball, numbers: Tensor, side: Tensor, memo: Memo) -> Tensor:
        """Return the points with a random window changed; the host looks at no value.

        Args:
            adv: ``(M, C, H, W)``, the best points so far.
            ball: See :meth:`ball`.
            numbers: ``(M, K)``, int64, as described by :meth:`counts` and :meth:`ends`.
            side: Scalar, int64, side in pixels; 0 changes nothing.
            memo: Constants of these shapes, kept from the first call to the next.
        """


class LinfWindows(Windows):
    """Start at vertical stripes; propose windows of one sign per channel (Andriushchenko et al. 2020, algorithm 2).

    Its changes of eps and -eps are the bounds of the ball, clipped to the box.
    """

    def start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        batch, channels, _, width = images.shape
        lower, upper = self.ball(images, eps)
        return torch.where(draw_below(2, (batch, channels, 1, width), images.device, generator) > 0, upper, lower)

    def side(self, share: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def counts(self, channels: int) -> list[int]:
        return [1, 1, channels]

    def ends(self, side: int, height: int, width: int) -> list[int]:
        return [*self.corners(side, height, width), 2]

    def ball(self, images: Tensor, eps: float) -> Ball:
        return NORMS["Linf"].ball(images, eps)

    def move(self, adv: Tensor, ball: Ball, numbers: Tensor, side: Tensor, memo: Memo) -> Tensor:  # noqa: ARG002
        lower, upper = ball
        changed = torch.lerp(lower, upper, numbers[:, 2:, None, None].to(adv.dtype))
        return torch.lerp(adv, changed, Window(numbers[:, :2], side, adv).inside)


class L2Windows(Windows):
    """Start at tiles of two bumps; move length from one window to another (the same paper, algorithm 3).

    A proposal adds two bumps of opposite signs to one window of the perturbation, scales it to the length that this
    window, a second one and the unused part of eps have together, and sets the second window to zero.
    """

    def start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        batch, channels, height, width = images.shape
        side = max(min(height, width) // 5, 1)
        delta, bumps = torch.zeros_like(images), _bumps(side, images)
        top, left = height % side // 2, width % side // 2
        for row in range(top, height - side + 1, side):
            for column in range(left, width - side + 1, side):
                signs = draw_below(2, (batch, channels, 1, 1), images.device, generator) * 2 - 1
                coin = draw_below(2, (batch,), images.device, generator)
                delta[:, :, row : row + side, column : column + side] = signs * bumps[coin][:, None]
        return self._scale_to_eps(delta, *self.ball(images, eps)[:3])

    def side(self, share: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)

    def counts(self, channels: int) -> list[int]:
        return [1, 1, 1, 1, channels, 1]

    def ends(self, side: int, height: int, width: int) -> list[int]:
        return [*self.corners(side, height, width) * 2, 2, 2]

    def ball(self, images: Tensor, eps: float) -> Ball:
        return *NORMS["L2"].ball(images, eps), images.new_full((), eps), images.new_full((), eps**2)

    def move(self, adv: Tensor, ball: Ball, numbers: Tensor, side: Tensor, memo: Memo) -> Tensor:
        images, radius, eps, square = ball
        if "bumps" not in memo:
            memo["bumps"] = _all_bumps(min(adv.shape[2:]), adv)
        delta = adv - images
        filled, emptied = (Window(corner, side, adv) for corner in (numbers[:, :2], numbers[:, 2:4]))
        signs, coin = numbers[:, 4:-1, None, None] * 2 - 1, numbers[:, -1]
        # Mostly in place: on a CPU, new memory for each of these takes as long as the arithmetic.
        old = delta * filled.inside
        old.div_(_lengths(old).clamp_min_(1e-12))
        new = old.add_(signs * filled.place(memo["bumps"], coin + side // 2 * 2))
        unused = (square - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min_(0).div_(adv.shape[1])
        both = delta * torch.maximum(filled.inside, emptied.inside)
        length = both.square_().sum((2, 3), keepdim=True).add_(unused).sqrt_()
        new.div_(_lengths(new).clamp_min_(1e-12)).mul_(length)
        delta.mul_(1 - emptied.inside).lerp_(new, filled.inside)
        moved = self._scale_to_eps(delta, images, radius, eps)
        return torch.lerp(adv, moved, (side > 0).to(adv.dtype))

    @staticmethod
    def _scale_to_eps(delta: Tensor, images: Tensor, radius: Tensor, eps: Tensor) -> Tensor:
        """Return the images plus the change, scaled to the length eps and clipped to the box."""
        norm = NORMS["L2"]
        return norm.clip_(norm.steepest_step(delta, eps).add_(images), (images, radius))


def _lengths(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each channel; ``(M, C, 1, 1)``."""
    lengths: Tensor = torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)
    return lengths


def _all_bumps(largest: int, like: Tensor) -> Tensor:
    """Return the bumps of all sides of windows, which are odd or the largest; ``(P, largest, largest)``.

    Those of a side begin at index ``side // 2 * 2``, in the first rows and columns.
    """
    bumps = like.new_zeros(largest // 2 + 1, 2, largest, largest)
    for side in (*range(1, largest, 2), largest):
        bumps[side // 2, :, :side, :side] = _bumps(side, like)
    return bumps.flatten(0, 1)


def _bumps(side: int, like: Tensor) -> Tensor:
    """Return two bumps of opposite signs, side by side and stacked; ``(2, side, side)``, each of length 1."""
    upper, lower = side // 2, side - side // 2
    pattern = torch.cat([_bump(upper, side, like), -_bump(lower, side, like)])
    pattern = pattern / torch.linalg.vector_norm(pattern)
    return torch.stack([pattern.T, pattern])


def _bump(height: int, width: int, like: Tensor) -> Tensor:
    """Return square rings that rise towards the centre (the same paper, eq. 2), of length 1; ``(height, width)``."""
    rings = max(height, width) // 2 + 1
    rows, columns = ((torch.arange(size, device=like.device) - size // 2).abs() for size in (height, width))
    ring = torch.maximum(rows[:, None], columns)  # 0 at the centre
    heights = torch.arange(1, rings + 1, device=like.device, dtype=like.dtype).pow(-2)
    bump: Tensor = heights.flip(0).cumsum(0).flip(0)[ring]
    return bump.div_(torch.linalg.vector_norm(bump).clamp_min(1e-12))


WINDOWS: dict[NormName, Windows] = {"Linf": LinfWindows(), "L2": L2Windows()}
