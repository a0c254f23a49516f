"""Predictions as a CSV file."""

import csv
from typing import Any

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.outputs import new_file, run_folder

COLUMNS = ("index", "label", "clean_prediction", "clean_confidence", "adv_prediction", "adv_confidence")


class PredictionWriterCallback(Callback):
    """Write what ``predict`` found to ``predictions.csv``: a row an image, in the data's order.

    The label is empty where unknown; a confidence is the predicted class's probability.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start empty."""
        self._rows: list[list[Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's rows."""
        values = {name: tensor.tolist() for name, tensor in outputs.items()}
        for i in range(len(values["clean_prediction"])):
            row = [values[name][i] if name in values else "" for name in COLUMNS]
            if row[0] == "":
                row[0] = len(self._rows)
            self._rows.append([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all ranks and write them."""
        parts: list[list[list[Any]]] = [self._rows]
        if trainer.world_size > 1:
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._rows)
        if not trainer.is_global_zero:
            return
        rows = [row for part in parts for row in part]
        rows.sort(key=lambda row: int(row[0]))
        path = new_file(run_folder(trainer), "predictions", ".csv")
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        print(f"Predictions: {path}")
