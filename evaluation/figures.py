"""Figures of what a model withstands. Matplotlib is imported on use: it is slow to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def robustness_figure(
    eps_grid: Sequence[float], accuracy: Sequence[float], target_eps: float, attack: str, images: int
) -> Figure:
    """Draw robust accuracy over eps.

    Args:
        eps_grid: Pixel scale.
        accuracy: In [0, 1], one for each eps.
        target_eps: Marked by a line.
        attack: The attack's name, for the title.
        images: Number of images, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(eps_grid, [100 * value for value in accuracy], marker="o", color="C0")
    axes.axvline(target_eps, color="0.5", linestyle="--", label=f"target eps {target_eps:g}")
    for eps, value in zip(eps_grid, accuracy, strict=True):
        axes.annotate(f"{100 * value:.0f}", (eps, 100 * value), xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set(
        title=f"Accuracy under {attack}, first {images:,} test images",
        xlabel="eps (pixel scale)",
        ylabel="accuracy (%)",
        ylim=(0, 108),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def adversarial_figure(
    clean: Tensor, adv: Tensor, labels: Tensor, clean_classes: Tensor, adv_classes: Tensor, eps: float
) -> Figure:
    """Draw clean images, their adversarial twins and the differences, one image a column.

    Args:
        clean: ``(N, C, H, W)``, float, in [0, 1], with one or three channels.
        adv: Like ``clean``.
        labels: ``(N,)``, int64.
        clean_classes: ``(N,)``, predicted on ``clean``.
        adv_classes: ``(N,)``, predicted on ``adv``.
        eps: Radius; the differences' scale runs from -eps to eps.
    """
    from matplotlib.figure import Figure

    columns = len(clean)
    figure = Figure(figsize=(1.2 * columns + 0.8, 4.6), layout="constrained")
    grid = figure.subplots(3, columns, squeeze=False)
    difference = (adv - clean) / (2 * eps or 1) + 0.5
    rows = (("clean", clean, clean_classes), ("adversarial", adv, adv_classes), ("difference", difference, None))
    for row, (title, images, classes) in enumerate(rows):
        grid[row][0].set_ylabel(title)
        for column, axes in enumerate(grid[row]):
            pixels = images[column].detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()  # (H, W, C)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if classes is not None:
                right = bool(classes[column] == labels[column])
                axes.set_title(f"{int(classes[column])}", color="C2" if right else "C3", fontsize=10)
    figure.suptitle(f"Predictions (green: right), eps {eps:g}", fontsize=11)
    return figure
