"""The results of a test, as a table and as a file."""

import json
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from attacks import NamedAttack, parse_eps
from callbacks.outputs import new_file, run_folder
from evaluation import disagreements, fingerprint, provenance


class ResultsTableCallback(Callback):
    """Print clean and robust accuracies at the end of a test and write them, with their origin, to ``test.json``.

    Attributes:
        weights: Where the network's weights come from, if not from the checkpoint that the trainer restored.
    """

    weights: str | None = None
    _fit_start: float | None = None
    _fit_seconds: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the training's clock."""
        self._fit_start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the training's clock."""
        assert self._fit_start is not None
        self._fit_seconds = round(time.monotonic() - self._fit_start, 1)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write the file.

        Raises:
            ValueError: If a stronger attack leaves more images standing: then the evaluation is broken.
        """
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rows = [{"name": "clean", "eps": 0.0, "accuracy": metrics["test/clean_acc"], "attack": None}]
        for named in module.test_attacks:
            rows.append(
                {
                    "name": named.name,
                    "eps": named.eps,
                    "accuracy": metrics[f"test/robust_acc/{named.name}"],
                    "attack": named.attack.settings(),
                }
            )
        images = _number_of_images(trainer)
        if images is not None:
            _refuse_what_cannot_be(module.test_attacks, rows, images)
        report = {
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else self.weights,
            "weights": fingerprint(*module.network.state_dict().values()),
            "images": images,
            "results": rows,
            "seed": module.run_seed,
            "fit_seconds": self._fit_seconds,
            "test_seconds": round(time.monotonic() - self._start, 1),
            **provenance(),
        }
        path = new_file(run_folder(trainer), "test", ".json")
        path.write_text(json.dumps(report, indent=2, default=str) + "\n")
        print(format_table([(str(row["name"]), float(str(row["accuracy"]))) for row in rows], images))
        print(f"\nResults: {path}")


def format_table(rows: list[tuple[str, float]], images: int | None) -> str:
    """Lay out accuracies in [0, 1] as percentages, under a title that says on how many images."""
    width = max(len("attack"), *(len(name) for name, _ in rows))
    number = f", {images:,} test images" if images else ""
    lines = [f"{'attack':<{width}}  accuracy (%){number}", "-" * (width + 14)]
    lines += [f"{name:<{width}}  {100 * accuracy:12.2f}" for name, accuracy in rows]
    return "\n" + "\n".join(lines)


def _refuse_what_cannot_be(attacks: list[NamedAttack], rows: list[dict[str, Any]], images: int) -> None:
    standing = [round(row["accuracy"] * images) for row in rows]
    results = [
        (named.attack.settings(), parse_eps(named.eps, named.attack.norm), count)
        for named, count in zip(attacks, standing[1:], strict=True)
    ]
    if problems := disagreements(results, standing[0]):
        raise ValueError(f"the evaluation is broken, no number is reported: {'; '.join(problems)}")


def _number_of_images(trainer: Trainer) -> int | None:
    loader: Any = trainer.test_dataloaders
    labels = getattr(loader, "labels", getattr(loader, "dataset", None))
    return len(labels) if labels is not None and trainer.limit_test_batches == 1.0 else None
