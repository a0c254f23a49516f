"""Robustness curve: robust accuracy over eps, at the end of a test."""

import csv
import io
import math
from itertools import pairwise
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from callbacks.outputs import new_file, run_folder, save_figure, warn_if_not_drawn
from rampart.attacks import PGD, Attack, Eps, format_eps, parse_eps
from rampart.attacks.random import make_generator
from rampart.bounds import certified_mask
from rampart.data import Batch
from rampart.evaluation import fooling_eps, robustness_figure
from rampart.evaluation.figures import CertifiedCurve
from rampart.files import write_whole


class RobustnessCurveCallback(Callback):
    """Write robust accuracy over a grid of eps as a figure and a CSV file, and log the figure to TensorBoard.

    If the module certifies and the attack is in l-inf, they have certified accuracy too.

    Args:
        num_images: Number of images to attack, from the first of the test set on; 0 turns the curve off.
        attack: Attack at each eps; PGD with 20 steps in the module's norm if None.
        eps_grid: Increasing radii on the pixel scale; if None, multiples of an eighth of the module's target eps, from
            0 to 1.25 times the target.

    Raises:
        ValueError: If the number of images is negative or the grid is not increasing.
    """

    def __init__(self, num_images: int = 500, attack: Attack | None = None, eps_grid: list[Eps] | None = None) -> None:
        if num_images < 0:
            raise ValueError(f"curve.num_images must be at least 0, got {num_images}")
        if eps_grid is not None:
            grid = [parse_eps(eps, "L2", "curve.eps_grid") for eps in eps_grid]
            if not grid or any(low >= high for low, high in pairwise(grid)):
                raise ValueError(f"curve.eps_grid must be at least one eps, in increasing order, got {eps_grid}")
        self.num_images = num_images
        self.attack = attack
        self.eps_grid = eps_grid

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the attack and the grid, also before training, so that an invalid grid fails at once.

        Raises:
            ValueError: If an eps is out of the norm's range.
        """
        module: Any = pl_module
        self._attack = self.attack or PGD(norm=module.val_attack.norm, steps=20)
        if self.eps_grid is None:
            largest = 1.0 if self._attack.norm == "Linf" else math.inf
            self._grid = sorted({min(module.target_eps * eighths / 8, largest) for eighths in range(11)})
        else:
            self._grid = [parse_eps(eps, self._attack.norm, "curve.eps_grid") for eps in self.eps_grid]

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._seen = 0
        self._robust = torch.zeros(len(self._grid), dtype=torch.long, device=pl_module.device)
        self._certified = torch.zeros_like(self._robust)
        self._certifies = getattr(pl_module, "certifies", False) and self._attack.norm == "Linf"

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack the batch at each eps; images that were fooled at a smaller eps are not attacked again.

        Raises:
            ValueError: If a certified image is fooled, which shows that the bound or the evaluation is broken.
        """
        module: Any = pl_module
        place = module.locate_batch(batch_idx)
        left = self.num_images // trainer.world_size - self._seen
        if place.first is not None:
            left = self.num_images - place.first
        if left <= 0:
            return
        counted = outputs if isinstance(outputs, Batch) else module.read_batch(batch)
        assert counted.labels is not None
        images, labels = counted.images[:left], counted.labels[:left]
        if len(images) == 0:
            return

        def generator(eps: float) -> torch.Generator:
            return make_generator(images.device, "curve", module.run_seed, *place[:2], eps)

        with module.execution.evaluation(images.device.type):
            smallest = fooling_eps(module.evaluated_network, images, labels, self._attack, self._grid, generator)
        grid = torch.tensor(self._grid, dtype=torch.float64, device=smallest.device)
        self._robust = self._robust + (smallest[:, None] > grid).sum(0)
        self._seen += len(labels)
        if self._certifies:
            self._certified = self._certified + self._count_certified(module.network, images, labels, smallest)

    def _count_certified(self, network: nn.Module, images: Tensor, labels: Tensor, smallest: Tensor) -> Tensor:
        """Return the number of certified images at each eps; one that is not certified is not at a larger eps."""
        counts, active = [], torch.ones_like(labels, dtype=torch.bool)
        for eps in self._grid:
            active = certified_mask(network, images, labels, eps, active=active)
            counts.append(active.sum())
            if count := int((active & (smallest <= eps)).sum()):
                raise ValueError(
                    f"the evaluation is broken, no curve is drawn: {count} images are certified at eps "
                    f"{format_eps(eps)} and fooled by {self._attack.name}"
                )
        return torch.stack(counts)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV file and the figure."""
        seen, *counts = (
            trainer.strategy.reduce(count, reduce_op="sum")
            for count in (torch.tensor(self._seen, device=pl_module.device), self._robust, self._certified)
        )
        images = int(seen)
        if images == 0 or not trainer.is_global_zero:
            return
        robust, certified = ([count / images for count in each.tolist()] for each in counts)
        module: Any = pl_module
        name, shown = self._attack.name, self._certifies
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["eps", "accuracy", "images", "attack", *["certified"] * shown])
        for eps, accuracy, bound in zip(self._grid, robust, certified, strict=True):
            writer.writerow([eps, accuracy, images, name, *[bound] * shown])
        write_whole(new_file(run_folder(trainer), "robustness_curve", ".csv"), table.getvalue())
        with warn_if_not_drawn("the robustness curve"):
            # Each image's largest certified eps of the grid, from the counts.
            steps = (counts[1] - torch.cat([counts[1][1:], counts[1].new_zeros(1)])).cpu()
            radius = torch.tensor(self._grid, dtype=torch.float64).repeat_interleave(steps)
            band = CertifiedCurve(radius) if shown else None
            figure = robustness_figure(self._grid, robust, module.target_eps, name, images, certified=band)
            print(f"Robustness over eps: {save_figure(trainer, 'robustness_curve', figure)}")
