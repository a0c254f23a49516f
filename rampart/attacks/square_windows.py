"""Perturbations that Square proposes: random changes of square windows, in l-inf and in L2."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.attacks.eps import NormName
from rampart.attacks.norms import NORMS


@dataclass
class BatchRandom:
    """Random numbers for the active images, drawn for the whole batch so that they don't depend on which are active.

    Attributes:
        generator: Source of random numbers; the global one if None.
        batch: Number of images in the whole batch.
        active: ``(M,)``, int64, indices of the active images.
    """

    generator: torch.Generator | None
    batch: int
    active: Tensor

    def below(self, end: int, *shape: int) -> Tensor:
        """Return random whole numbers in [0, end); ``(M, *shape)``, int64."""
        shape = (self.batch, *shape)
        return torch.randint(end, shape, generator=self.generator, device=self.active.device)[self.active]

    def signs(self, *shape: int) -> Tensor:
        """Return random signs, -1 or 1; ``(M, *shape)``, int64."""
        return self.below(2, *shape).mul_(2).sub_(1)

    def window(self, side: int, height: int, width: int) -> "Window":
        """Return a window of this side, in pixels, at a random place in each image."""
        return Window(self.below(height - side + 1, 1), self.below(width - side + 1, 1), side, height, width)


class Window:
    """A square window in each image.

    Attributes:
        rows: ``(M, H)``, int64, zero-based position of each image row in the window; negative above it, at least
            the side below it.
        columns: ``(M, W)``, int64, the same for columns.
        inside: ``(M, 1, H, W)``, bool, True for the pixels in the window.
    """

    def __init__(self, top: Tensor, left: Tensor, side: int, height: int, width: int) -> None:
        self.rows = torch.arange(height, device=top.device) - top
        self.columns = torch.arange(width, device=top.device) - left
        rows, columns = ((at >= 0) & (at < side) for at in (self.rows, self.columns))
        self.inside = rows[:, None, :, None] & columns[:, None, None, :]

    def place(self, pattern: Tensor) -> Tensor:
        """Place one pattern per image, ``(M, side, side)``, in the window, zero elsewhere; ``(M, 1, H, W)``."""
        last = pattern.shape[-1] - 1
        rows, columns = self.rows.clamp(0, last)[:, :, None], self.columns.clamp(0, last)[:, None, :]
        image = torch.arange(len(pattern), device=rows.device)[:, None, None]
        return pattern[image, rows, columns][:, None] * self.inside


class Windows(ABC):
    """Starting points and proposals of Square. Every point is inside the ball and the box [0, 1]."""

    @abstractmethod
    def start(self, images: Tensor, eps: float, random: BatchRandom) -> Tensor:
        """Return a random starting point for each image."""

    @abstractmethod
    def side(self, share: float, height: int, width: int) -> int:
        """Return the side in pixels of a window that covers about this share of the image."""

    @abstractmethod
    def move(self, adv: Tensor, images: Tensor, eps: float, side: int, random: BatchRandom) -> Tensor:
        """Change a random window of each image.

        Args:
            adv: ``(M, C, H, W)``, the best point so far.
            images: Like ``adv``.
            eps: Radius on the pixel scale.
            side: Window side in pixels.
            random: Random numbers for these images.
        """


class LinfWindows(Windows):
    """Start at vertical stripes; propose windows of one sign per channel (Andriushchenko et al. 2020, algorithm 2)."""

    def start(self, images: Tensor, eps: float, random: BatchRandom) -> Tensor:
        _, channels, _, width = images.shape
        stripes = random.signs(channels, 1, width).to(images.dtype)
        return NORMS["Linf"].project(images + eps * stripes, images, eps)

    def side(self, share: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def move(self, adv: Tensor, images: Tensor, eps: float, side: int, random: BatchRandom) -> Tensor:
        inside = random.window(side, *images.shape[2:]).inside
        signs = random.signs(images.shape[1], 1, 1).to(images.dtype)
        return torch.where(inside, NORMS["Linf"].project(images + eps * signs, images, eps), adv)


class L2Windows(Windows):
    """Start at tiles of two bumps; move length from one window to another (the same paper, algorithm 3).

    A proposal adds two bumps of opposite signs to one window of the perturbation, scales it to the length that this
    window, a second one and the unused part of eps have together, and sets the second window to zero.
    """

    def start(self, images: Tensor, eps: float, random: BatchRandom) -> Tensor:
        _, channels, height, width = images.shape
        side = max(min(height, width) // 5, 1)
        delta = torch.zeros_like(images)
        top, left = height % side // 2, width % side // 2
        for row in range(top, height - side + 1, side):
            for column in range(left, width - side + 1, side):
                tile = random.signs(channels, 1, 1) * _bumps(side, images, random)
                delta[:, :, row : row + side, column : column + side] = tile
        return self._scale_to_eps(delta, images, eps)

    def side(self, share: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)

    def move(self, adv: Tensor, images: Tensor, eps: float, side: int, random: BatchRandom) -> Tensor:
        channels, height, width = images.shape[1:]
        delta = adv - images
        filled, emptied = random.window(side, height, width), random.window(side, height, width)
        old = delta * filled.inside
        signed = random.signs(channels, 1, 1) * filled.place(_bumps(side, images, random)[:, 0])
        new = signed + old / _lengths(old).clamp_min(1e-12)
        unused = (eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / channels
        length = (unused + (delta * (filled.inside | emptied.inside)).square().sum((2, 3), keepdim=True)).sqrt()
        new = new / _lengths(new).clamp_min(1e-12) * length
        delta = torch.where(filled.inside, new, torch.where(emptied.inside, 0, delta))
        return self._scale_to_eps(delta, images, eps)

    @staticmethod
    def _scale_to_eps(delta: Tensor, images: Tensor, eps: float) -> Tensor:
        """Return the images plus the change, scaled to the length eps and clipped to the box."""
        norm = NORMS["L2"]
        return norm.project(norm.steepest_step(delta, eps).add_(images), images, eps)


def _lengths(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each channel; ``(M, C, 1, 1)``."""
    lengths: Tensor = torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True)
    return lengths


def _bumps(side: int, like: Tensor, random: BatchRandom) -> Tensor:
    """Return two bumps of opposite signs, side by side or stacked at random; ``(M, 1, side, side)``."""
    upper, lower = side // 2, side - side // 2
    pattern = torch.cat([_bump(upper, side, like), -_bump(lower, side, like)])
    pattern = pattern / torch.linalg.vector_norm(pattern)
    coin = random.below(2, 1, 1, 1).bool()
    return torch.where(coin, pattern, pattern.T)


def _bump(height: int, width: int, like: Tensor) -> Tensor:
    """Return square rings that rise towards the centre (the same paper, eq. 2), of length 1; ``(height, width)``."""
    rings = max(height, width) // 2 + 1
    rows, columns = ((torch.arange(size, device=like.device) - size // 2).abs() for size in (height, width))
    ring = torch.maximum(rows[:, None], columns)  # 0 at the centre
    heights = torch.arange(1, rings + 1, device=like.device, dtype=like.dtype).pow(-2)
    bump: Tensor = heights.flip(0).cumsum(0).flip(0)[ring]
    return bump.div_(torch.linalg.vector_norm(bump).clamp_min(1e-12))


WINDOWS: dict[NormName, Windows] = {"Linf": LinfWindows(), "L2": L2Windows()}
