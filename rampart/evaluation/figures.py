"""Figures of what a model withstands. Matplotlib is imported on use: it is slow to import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rampart.evaluation.results import MAX_EXAMPLES, WorstCase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMBERED = 20  # classes up to which a confusion matrix shows its numbers


def robustness_figure(
    eps_grid: Sequence[float],
    accuracy: Sequence[float],
    target_eps: float,
    attack: str,
    images: int,
    intervals: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draw robust accuracy over eps.

    Args:
        eps_grid: Pixel scale.
        accuracy: In [0, 1], one for each eps.
        target_eps: Marked by a line.
        attack: The attack's name, for the title.
        images: Number of images, for the title.
        intervals: Lowest and highest accuracy of each eps, drawn as bars; none if empty.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(eps_grid, [100 * value for value in accuracy], marker="o", color="C0")
    for eps, (low, high) in zip(eps_grid, intervals, strict=False):
        axes.vlines(eps, 100 * low, 100 * high, color="C0", linewidth=4, alpha=0.4)
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


def can_be_drawn(images: Tensor) -> bool:
    """Return true for images ``(N, C, H, W)`` with one or three channels."""
    return images.ndim == 4 and images.shape[1] in (1, 3)


def adversarial_figure(
    clean: Tensor,
    adv: Tensor,
    labels: Tensor,
    clean_classes: Tensor,
    adv_classes: Tensor,
    eps: float,
    title: str = "Predictions",
) -> Figure:
    """Draw clean images, their adversarial twins and the differences, one image a column.

    Args:
        clean: ``(N, C, H, W)``, float, in [0, 1], with one or three channels.
        adv: Like ``clean``.
        labels: ``(N,)``, int64.
        clean_classes: ``(N,)``, predicted on ``clean``.
        adv_classes: ``(N,)``, predicted on ``adv``.
        eps: Radius; the differences' scale runs from -eps to eps.
        title: What is shown.

    Raises:
        ValueError: If there is no picture of images like these.
    """
    if not can_be_drawn(clean):
        raise ValueError(f"images must be (N, 1 or 3, H, W) to be drawn, got shape {tuple(clean.shape)}")
    from matplotlib.figure import Figure

    columns = len(clean)
    figure = Figure(figsize=(max(5, 1.2 * columns + 0.8), 4.6), layout="constrained")
    grid = figure.subplots(3, columns, squeeze=False)
    difference = (adv - clean) / (2 * eps or 1) + 0.5
    rows = (("clean", clean, clean_classes), ("adversarial", adv, adv_classes), ("difference", difference, None))
    for row, (kind, images, classes) in enumerate(rows):
        grid[row][0].set_ylabel(kind)
        for column, axes in enumerate(grid[row]):
            pixels = images[column].detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()  # (H, W, C)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if classes is not None:
                right = bool(classes[column] == labels[column])
                axes.set_title(f"{int(classes[column])}", color="C2" if right else "C3", fontsize=10)
    figure.suptitle(f"{title} (green: answered rightly), eps {eps:g}", fontsize=11)
    return figure


def worst_case_figures(
    found: WorstCase,
    eps_grid: Sequence[float],
    target_eps: float,
    intervals: Sequence[tuple[float, float]] = (),
) -> dict[str, Figure]:
    """Draw what a worst-case search found.

    Args:
        found: The search's result.
        eps_grid: Rising, pixel scale; that of the search.
        target_eps: Marked in the curve.
        intervals: Lowest and highest accuracy without an attack and at each eps.

    Returns:
        ``curve``, ``radii``, ``confusion``, and, where images ``(N, 1 or 3, H, W)`` were fooled, ``easiest`` and, if
        there are more, ``hardest`` with their adversarial twins.
    """
    grid = [0.0, *eps_grid]
    images = len(found.labels)
    accuracy = [found.count_robust(eps) / images for eps in grid]
    figures = {
        "curve": robustness_figure(grid, accuracy, target_eps, "the worst of all attacks", images, intervals),
        "radii": _radii_figure(found, grid),
        "confusion": _confusion_figure(found, grid[-1]),
    }
    drawable = [example for example in found.examples if can_be_drawn(example.image[None])]
    drawable = [example for example in drawable if example.image.shape == drawable[0].image.shape]
    some = {
        "easiest": ("The first to be fooled", drawable[:MAX_EXAMPLES]),
        "hardest": ("The last to be fooled", drawable[MAX_EXAMPLES:][-MAX_EXAMPLES:]),
    }
    for name, (title, chosen) in some.items():
        if chosen:
            places = [example.index for example in chosen]
            figures[name] = adversarial_figure(
                torch.stack([example.image for example in chosen]),
                torch.stack([example.adv for example in chosen]),
                found.labels[places],
                found.clean_class[places],
                found.adv_class[places],
                max(example.eps for example in chosen),
                title,
            )
    return figures


def _radii_figure(found: WorstCase, grid: Sequence[float]) -> Figure:
    from matplotlib.figure import Figure

    counts = [int((found.eps == eps).sum()) for eps in [*grid, math.inf]]
    names = ["wrong\nas it is", *(f"{eps:g}" for eps in grid[1:]), "stands"]
    figure = Figure(figsize=(max(5, 0.8 * len(names) + 1), 4), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.bar(names, counts, color=["C3", *["C0"] * (len(grid) - 1), "C2"]))
    axes.set(title="Smallest eps at which an image was fooled", xlabel="eps (pixel scale)", ylabel="images")
    axes.margins(y=0.1)
    return figure


def _confusion_figure(found: WorstCase, eps: float) -> Figure:
    from matplotlib.figure import Figure

    classes = int(max(found.labels.max(), found.adv_class.max(), found.clean_class.max())) + 1
    answers = found.adv_class.where(found.eps.isfinite(), found.labels)
    counts = (found.labels * classes + answers).bincount(minlength=classes**2).view(classes, classes).cpu()
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    errors = counts.clone().fill_diagonal_(0)
    axes.imshow(errors.numpy(), cmap="Reds")
    if classes <= MAX_NUMBERED:
        for row, column in ((row, column) for row in range(classes) for column in range(classes)):
            color = "white" if errors[row, column] > 0.6 * errors.max() else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=color)
        axes.set(xticks=range(classes), yticks=range(classes))
    axes.set(title=f"Answers to the worst images, eps {eps:g} (errors in red)", xlabel="answer", ylabel="label")
    return figure
