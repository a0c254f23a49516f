"""Figures of robustness. Matplotlib is slow to import, so it is imported on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rampart.attacks import format_eps
from rampart.evaluation.results import MAX_EXAMPLES, WorstCase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval95 = tuple[float, float]
MAX_NUMBERED = 20  # largest number of classes for which a confusion matrix prints its counts


class CertifiedCurve(NamedTuple):
    """Certified accuracy over eps.

    Attributes:
        radius: ``(N,)``, float64: certified radius of each correctly classified clean image.
        intervals: 95% confidence interval of the certified accuracy at each eps of the grid above 0; may be empty.
    """

    radius: Tensor
    intervals: Sequence[Interval95] = ()

    def rate(self, eps: float, images: int) -> float:
        """Return the certified accuracy in [0, 1] at an eps, over all images."""
        return int((self.radius >= eps).sum()) / images


def robustness_figure(
    eps_grid: Sequence[float],
    accuracy: Sequence[float],
    target_eps: float,
    attack: str,
    images: int,
    intervals: Sequence[Interval95] = (),
    certified: CertifiedCurve | None = None,
) -> Figure:
    """Draw robust accuracy over eps, and certified accuracy below it.

    Args:
        eps_grid: Radii on the pixel scale.
        accuracy: Robust accuracy in [0, 1] at each eps.
        target_eps: Marked by a vertical line.
        attack: Name of the attack, for the title.
        images: Number of images, for the title.
        intervals: 95% confidence interval of the accuracy at each eps, drawn as bars; none if empty.
        certified: Certified radii; none are drawn if None.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    label = "" if certified is None else "under attack: an upper bound"
    axes.plot(eps_grid, [100 * value for value in accuracy], marker="o", color="C0", label=label)
    for number, (eps, (low, high)) in enumerate(zip(eps_grid, intervals, strict=False)):
        label = "" if number else "95% interval"
        axes.vlines(eps, 100 * low, 100 * high, color="C0", linewidth=4, alpha=0.4, label=label)
    axes.axvline(target_eps, color="0.5", linestyle="--", label=f"target eps {format_eps(target_eps)}")
    for eps, value in zip(eps_grid, accuracy, strict=True):
        axes.annotate(
            f"{100 * value:.1f}", (eps, 100 * value), xytext=(0, 8), textcoords="offset points", ha="center",
            fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    if certified is not None:
        _draw_certified(axes, certified, eps_grid, accuracy, images)
    axes.set(
        title=f"Accuracy under {attack}, first {images:,} test images",
        xlabel="eps (pixel scale)",
        ylabel="robust accuracy (%)",
        ylim=(0, 112),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def _draw_certified(
    axes: Any, certified: CertifiedCurve, eps_grid: Sequence[float], accuracy: Sequence[float], images: int
) -> None:
    """Draw certified accuracy, and the band between it and robust accuracy."""
    import numpy as np

    fine = np.union1d(np.linspace(eps_grid[0], eps_grid[-1], 200), eps_grid)
    lower = np.array([certified.rate(eps, images) for eps in fine])
    upper = np.maximum(np.interp(fine, eps_grid, accuracy), lower)
    axes.fill_between(fine, 100 * lower, 100 * upper, color="0.5", alpha=0.15, linewidth=0, label="neither is known")
    axes.plot(fine, 100 * lower, color="C2", label="certified: a lower bound")
    grid = [eps for eps in eps_grid if eps > 0]
    for eps, (low, high) in zip(grid, certified.intervals, strict=False):
        axes.vlines(eps, 100 * low, 100 * high, color="C2", linewidth=4, alpha=0.4)
    for eps in grid:
        value = 100 * certified.rate(eps, images)
        axes.plot([eps], [value], marker="o", color="C2")
        axes.annotate(
            f"{value:.1f}", (eps, value), xytext=(0, -16 if value > 10 else 8), textcoords="offset points", color="C2",
            ha="center", fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def can_be_drawn(images: Tensor) -> bool:
    """Return True for images ``(N, C, H, W)`` with one or three channels."""
    return images.ndim == 4 and images.shape[1] in (1, 3)


def adversarial_figure(
    clean: Tensor,
    adv: Tensor,
    labels: Tensor,
    clean_classes: Tensor,
    adv_classes: Tensor,
    eps: float,
    title: str | None = None,
) -> Figure:
    """Draw clean images, adversarial images and their differences, one image per column.

    Args:
        clean: ``(N, C, H, W)``, float, in [0, 1], with one or three channels.
        adv: Adversarial images, of the same shape and range.
        labels: ``(N,)``, int64.
        clean_classes: ``(N,)``, int64, predictions for ``clean``.
        adv_classes: ``(N,)``, int64, predictions for ``adv``.
        eps: Radius on the pixel scale; the gray scale of the differences runs from -eps to eps.
        title: Title of the figure; by default it names eps.

    Raises:
        ValueError: If the images have another shape.
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
                correct = bool(classes[column] == labels[column])
                axes.set_title(f"{int(classes[column])}", color="C2" if correct else "C3", fontsize=10)
    figure.suptitle(f"{title or f'Predictions at eps {format_eps(eps)}'} (green: correct)", fontsize=11)
    return figure


def worst_case_figures(
    found: WorstCase,
    eps_grid: Sequence[float],
    target_eps: float,
    intervals: Sequence[Interval95] = (),
    certified_intervals: Sequence[Interval95] = (),
) -> dict[str, Figure]:
    """Draw the result of a worst-case search.

    Args:
        found: Result of the search.
        eps_grid: The search's radii on the pixel scale, rising.
        target_eps: Marked in the curve.
        intervals: 95% confidence intervals of the accuracy on clean images and at each eps.
        certified_intervals: 95% confidence intervals of the certified accuracy at each eps.

    Returns:
        Figures by name: ``curve``, ``radii`` and ``confusion``; ``bounds`` if there are certificates; if images
        ``(N, 1 or 3, H, W)`` were fooled, also ``easiest``, and ``hardest`` if more than ``MAX_EXAMPLES`` were.
    """
    grid = [0.0, *eps_grid]
    images = len(found.labels)
    accuracy = [found.count_robust(eps) / images for eps in grid]
    title, certified = "the worst of all attacks", None
    if found.certificates is not None:
        certified = CertifiedCurve(found.certificates.radius[found.eps > 0], certified_intervals)
    figures = {
        "curve": robustness_figure(grid, accuracy, target_eps, title, images, intervals, certified),
        "radii": _radii_figure(found, grid),
        "confusion": _confusion_figure(found, grid[-1]),
    }
    if found.certificates is not None:
        figures["bounds"] = _bounds_figure(found, found.certificates.radius, grid[-1])
    return figures | _example_figures(found)


def _example_figures(found: WorstCase) -> dict[str, Figure]:
    """Draw the first and the last fooled images, if they can be drawn."""
    figures = {}
    drawable = [example for example in found.examples if can_be_drawn(example.image[None])]
    drawable = [example for example in drawable if example.image.shape == drawable[0].image.shape]
    groups = {
        "easiest": ("First fooled images", drawable[:MAX_EXAMPLES]),
        "hardest": ("Last fooled images", drawable[MAX_EXAMPLES:][-MAX_EXAMPLES:]),
    }
    for name, (title, chosen) in groups.items():
        if chosen:
            index = [example.index for example in chosen]
            low, high = format_eps(chosen[0].eps), format_eps(chosen[-1].eps)
            figures[name] = adversarial_figure(
                torch.stack([example.image for example in chosen]),
                torch.stack([example.adv for example in chosen]),
                found.labels[index],
                found.clean_class[index],
                found.adv_class[index],
                max(example.eps for example in chosen),
                f"{title}, eps {low}" if low == high else f"{title}, eps {low} to {high}",
            )
    return figures


def _radii_figure(found: WorstCase, grid: Sequence[float]) -> Figure:
    from matplotlib.figure import Figure

    counts = [int((found.eps == eps).sum()) for eps in [*grid, math.inf]]
    names = ["misclassified\nclean", *(format_eps(eps) for eps in grid[1:]), "robust"]
    figure = Figure(figsize=(max(5, 0.8 * len(names) + 1), 4), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.bar(names, counts, color=["C3", *["C0"] * (len(grid) - 1), "C2"]))
    axes.set(title="Smallest eps that fools each image", xlabel="eps (pixel scale)", ylabel="number of images")
    axes.margins(y=0.1)
    return figure


def _bounds_figure(found: WorstCase, radius: Tensor, largest: float) -> Figure:
    """Draw each image's certified radius below the smallest eps that fools it."""
    from matplotlib.figure import Figure

    top = 1.05 * largest
    fooled = found.eps.cpu().clamp(max=top)
    order = sorted(range(len(fooled)), key=lambda i: (fooled[i].item(), radius[i].item()))
    upper, lower = fooled[order].tolist(), radius[order].clamp(max=top).tolist()
    upper, lower = [*upper, upper[-1]], [*lower, lower[-1]]  # the right end of the last image's bar
    places = [place / len(order) * 100 for place in range(len(upper))]
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(places, upper, top, step="post", color="C3", alpha=0.3, linewidth=0, label="fooled")
    axes.fill_between(places, 0, lower, step="post", color="C2", alpha=0.5, linewidth=0, label="certified")
    axes.set(
        title="Certified radius and smallest fooling eps of each image",
        xlabel="images, from the first fooled to the last (%)",
        ylabel="eps (pixel scale)",
        xlim=(0, 100),
        ylim=(0, top),
    )
    axes.legend(loc="best")
    return figure


def _confusion_figure(found: WorstCase, eps: float) -> Figure:
    from matplotlib.figure import Figure

    classes = int(max(found.labels.max(), found.adv_class.max(), found.clean_class.max())) + 1
    predicted = found.adv_class.where(found.eps.isfinite(), found.labels)
    counts = (found.labels * classes + predicted).bincount(minlength=classes**2).view(classes, classes).cpu()
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    errors = counts.clone().fill_diagonal_(0)
    axes.imshow(errors.numpy(), cmap="Reds")
    if classes <= MAX_NUMBERED:
        for row, column in ((row, column) for row in range(classes) for column in range(classes)):
            color = "white" if errors[row, column] > 0.6 * errors.max() else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=color)
        axes.set(xticks=range(classes), yticks=range(classes))
    axes.set(
        title=f"Predictions under attack, eps {format_eps(eps)} (errors in red)",
        xlabel="predicted class",
        ylabel="label",
    )
    return figure
