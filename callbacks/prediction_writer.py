"""Predictions as a CSV file."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from callbacks.outputs import describe_evaluation, new_file, run_folder
from rampart.files import fingerprint, write_whole

COLUMNS = ("index", "label", "clean_prediction", "clean_confidence", "adv_prediction", "adv_confidence")


class PredictionWriterCallback(Callback):
    """Write predictions to ``predictions.csv``: one row per image, in the order of the data set.

    The index is the image's zero-based position in its data set, from the batch or from the loader's sampler. It is
    empty if neither has it and several processes read from the loader. The label is empty if unknown. A
    confidence is the probability of the predicted class. ``predictions.json`` has the attack, the weights and the
    provenance.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the rows, and describe the evaluation."""
        module: Any = pl_module
        named = module.prediction_attack
        self._report = {
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "weights": fingerprint(*module.network.state_dict().values()),
            "attack": {"name": named.name, "eps": named.eps, **named.attack.settings()},
            "seed": module.run_seed,
            **describe_evaluation(trainer, module),
        }
        self._rows: list[list[Any]] = []
        self._sampled = False

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
        values: dict[str, Any] = {name: tensor.tolist() for name, tensor in outputs.items()}
        count = len(values["clean_prediction"])
        if "index" not in values:
            values["index"] = self._positions(trainer, batch_idx, count)
        for i in range(count):
            row = [values[name][i] if name in values else "" for name in COLUMNS]
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
        if all(row[0] != "" for row in rows):
            rows.sort(key=lambda row: int(row[0]))
        else:
            rank_zero_warn(
                "predictions.csv has no index: its loader has no length, or no sampler with the images' positions, so "
                "rows may be repeated; use --trainer.devices 1 or a batch (images, labels, index)"
            )
        if self._sampled:  # The sampler repeats images, to give every process the same number.
            rows = list({row[0]: row for row in reversed(rows)}.values())[::-1]
        path = new_file(run_folder(trainer), "predictions", ".csv")
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        write_whole(path, table.getvalue())
        report = new_file(run_folder(trainer), "predictions", ".json")
        write_whole(report, json.dumps({"images": len(rows), **self._report}, indent=2, default=str) + "\n")
        print(f"\nPredictions: {path}")

    def _positions(self, trainer: Trainer, batch_idx: int, count: int) -> Sequence[int | str]:
        """Return the positions of a batch's images in their set: recorded by Lightning, or counted in one process."""
        loader: Any = trainer.predict_dataloaders
        if isinstance(loader, (list, tuple, dict)):
            (loader,) = loader.values() if isinstance(loader, dict) else loader
        recorded = getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", [])
        if batch_idx < len(recorded) and len(recorded[batch_idx]) == count:
            self._sampled = True
            return [int(position) for position in recorded[batch_idx]]
        return range(len(self._rows), len(self._rows) + count) if trainer.world_size == 1 else [""] * count
