"""Robustness curve: robust accuracy over eps, at the end of a test."""

import csv
import math
from itertools import pairwise
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.outputs import new_file, run_folder, save_figure, warn_if_not_drawn
from rampart.attacks import PGD, Attack, Eps, parse_eps
from rampart.attacks.random import make_generator
from rampart.data import Batch
from rampart.evaluation import fooling_eps, robustness_figure


class RobustnessCurveCallback(Callback):
    """Write robust accuracy over a grid of eps as a figure and a CSV file, and log the figure to TensorBoard.

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

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack the batch at each eps; images that were fooled at a smaller eps are not attacked again."""
        left = self.num_images // trainer.world_size - self._seen
        if left <= 0:
            return
        module: Any = pl_module
        counted = outputs if isinstance(outputs, Batch) else module.read_batch(batch)
        assert counted.labels is not None
        images, labels = counted.images[:left], counted.labels[:left]
        if len(images) == 0:
            return

        def generator(eps: float) -> torch.Generator:
            return make_generator(images.device, "curve", module.run_seed, trainer.global_rank, batch_idx, eps)

        with module.execution.evaluation(images.device.type):
            smallest = fooling_eps(module.evaluated_network, images, labels, self._attack, self._grid, generator)
        grid = torch.tensor(self._grid, dtype=torch.float64, device=smallest.device)
        self._robust = self._robust + (smallest[:, None] > grid).sum(0)
        self._seen += len(labels)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV file and the figure."""
        robust: Any = trainer.strategy.reduce(self._robust, reduce_op="sum")
        seen: Any = trainer.strategy.reduce(torch.tensor(self._seen, device=pl_module.device), reduce_op="sum")
        if int(seen) == 0 or not trainer.is_global_zero:
            return
        accuracy = [count / int(seen) for count in robust.tolist()]
        module: Any = pl_module
        with new_file(run_folder(trainer), "robustness_curve", ".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["eps", "accuracy", "images", "attack"])
            writer.writerows(
                [eps, acc, int(seen), self._attack.name] for eps, acc in zip(self._grid, accuracy, strict=True)
            )
        with warn_if_not_drawn("the robustness curve"):
            figure = robustness_figure(self._grid, accuracy, module.target_eps, self._attack.name, int(seen))
            print(f"Robustness over eps: {save_figure(trainer, 'robustness_curve', figure)}")
