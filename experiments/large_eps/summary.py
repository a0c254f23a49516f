"""Numbers of a training run that its tables lack: cost, loss, largest eps, share of the most predicted class."""

import json
from collections import deque
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.outputs import run_folder
from rampart.attacks.logits import compute_logits
from rampart.files import write_whole

LAST = 50
"""Optimizer steps at the end of a training whose losses are averaged."""


class SummaryCallback(Callback):
    """Write ``summary.json`` into the run's folder after the test that follows a training.

    It has ``gradient_evaluations``, images times attack steps plus one for the update, over the training; ``steps``,
    the number of training batches; ``loss``, the mean of the last 50; ``largest_eps`` and ``last_eps`` of training, on
    the pixel scale; and ``predicted``, the number of clean test images for which each class is predicted.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Reset the counts."""
        self._evaluations = self._steps = 0
        self._losses: deque[Tensor] = deque(maxlen=LAST)
        self._largest = self._last = 0.0

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count the batch's gradient evaluations, and keep its loss and eps."""
        module: Any = pl_module
        images = module.read_batch(batch).images
        attack_steps = module.attack.steps_at(module.eps) if module.eps > 0 else 0
        self._evaluations += len(images) * (attack_steps + 1)
        self._steps += 1
        self._losses.append(outputs["loss"].detach())
        self._largest, self._last = max(self._largest, module.eps), module.eps

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset the predictions."""
        self._predictions: list[Tensor] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Predict the classes of clean images."""
        module: Any = pl_module
        logits = compute_logits(module.evaluated_network, outputs.images)
        self._classes = logits.shape[1]
        self._predictions.append(logits.argmax(1))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the file."""
        summary = {
            "gradient_evaluations": self._evaluations,
            "steps": self._steps,
            "loss": round(float(torch.stack(list(self._losses)).mean()), 4),
            "largest_eps": round(self._largest, 4),
            "last_eps": round(self._last, 4),
            "predicted": torch.cat(self._predictions).bincount(minlength=self._classes).tolist(),
        }
        write_whole(run_folder(trainer) / "summary.json", json.dumps(summary) + "\n")
