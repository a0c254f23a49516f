"""Results of a test or validation, as a table and as a JSON file."""

import json
import time
from collections.abc import Iterable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from callbacks.outputs import describe_evaluation, new_file, run_folder
from rampart.attacks import NamedAttack, parse_eps
from rampart.evaluation import find_contradictions
from rampart.files import fingerprint, write_whole


class ResultsTableCallback(Callback):
    """Print accuracies after a test or validation, and write them with their provenance to a JSON file.

    Attributes:
        weights: File of the network's weights, if not the checkpoint that the trainer restored.
    """

    weights: str | None = None
    _earlier_seconds: float | None = None
    _fit_start: float | None = None
    _fit_seconds: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the training time so far in seconds, including the earlier parts of a resumed run."""
        return {"fit_seconds": self._measure_fit_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the training time of the resumed run, unless this run is already training."""
        seconds = state_dict.get("fit_seconds")
        if self._fit_start is None and isinstance(seconds, float):
            self._earlier_seconds = seconds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the training clock."""
        self._fit_seconds = None
        self._fit_start = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the training clock."""
        self._fit_seconds = self._measure_fit_seconds()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics and start the clock."""
        module: Any = pl_module
        self._begin(trainer, module, module.test_clean_acc, *module.test_robust_acc, *module.test_certified_acc)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the accuracies over all ranks from the metrics, since a barebones trainer logs nothing."""
        module: Any = pl_module
        certified = zip(module.test_certified_eps, module.test_certified_acc, strict=True)
        self._finish([module.test_clean_acc, *module.test_robust_acc], certified if module.certifies else ())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write ``test.json``.

        Raises:
            ValueError: If more images are robust to a stronger attack, which shows that the evaluation is broken.
        """
        module: Any = pl_module
        if trainer.is_global_zero:
            images = _count_images(trainer.test_dataloaders, trainer.limit_test_batches)
            self._report(trainer, pl_module, "test", module.test_attacks, images)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics and start the clock."""
        module: Any = pl_module
        if trainer.state.fn == "validate":
            self._begin(trainer, module, module.val_clean_acc, module.val_robust_acc, module.val_certified_acc)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the accuracies over all ranks."""
        module: Any = pl_module
        if trainer.state.fn == "validate":
            certified = [(module.target_eps, module.val_certified_acc)] if module.certifies else ()
            self._finish([module.val_clean_acc, module.val_robust_acc], certified)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and write ``validate.json``, but not for a validation during training."""
        module: Any = pl_module
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            images = _count_images(trainer.val_dataloaders, trainer.limit_val_batches)
            named = NamedAttack(module.val_attack, module.target_eps)
            self._report(trainer, pl_module, "validate", [named], images)

    def _begin(self, trainer: Trainer, module: Any, *metrics: Metric) -> None:
        for metric in metrics:
            metric.reset()
        self._origin = describe_evaluation(trainer, module)
        self._start = time.monotonic()

    def _finish(self, metrics: Iterable[Metric], certified: Iterable[tuple[float, Metric]]) -> None:
        self._accuracies = [float(metric.compute()) for metric in metrics]
        self._certified = {eps: float(metric.compute()) for eps, metric in certified}

    def _measure_fit_seconds(self) -> float | None:
        if self._fit_seconds is not None or self._fit_start is None:
            return self._fit_seconds or self._earlier_seconds
        return round((self._earlier_seconds or 0.0) + time.monotonic() - self._fit_start, 1)

    def _report(
        self, trainer: Trainer, module: LightningModule, command: str, attacks: list[NamedAttack], images: int | None
    ) -> None:
        clean, *robust = self._accuracies
        rows: list[dict[str, Any]] = [{"name": "clean", "eps": 0.0, "accuracy": clean, "attack": None}]
        for named, accuracy in zip(attacks, robust, strict=True):
            settings = named.attack.settings()
            rows.append({"name": named.name, "eps": named.eps, "accuracy": accuracy, "attack": settings})
            if named.attack.norm == "Linf" and self._certified:
                rows[-1]["certified"] = self._certified[parse_eps(named.eps, "Linf")]
        if images is not None:
            _check_consistency(attacks, rows, images)
        classifier: Any = module
        report = {
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else self.weights,
            "weights": fingerprint(*classifier.network.state_dict().values()),
            "images": images,
            "results": rows,
            "seed": classifier.run_seed,
            "fit_seconds": self._measure_fit_seconds(),
            f"{command}_seconds": round(time.monotonic() - self._start, 1),
            **self._origin,
        }
        path = new_file(run_folder(trainer), command, ".json")
        write_whole(path, json.dumps(report, indent=2, default=str) + "\n")
        kind = "test" if command == "test" else "validation"
        print(format_table(rows, images, kind))
        print(f"\nResults: {path}")


def format_table(rows: list[dict[str, Any]], images: int | None, kind: str = "test") -> str:
    """Return a table of accuracies as percentages, with the number of images in its title.

    Args:
        rows: Each with ``name`` and ``accuracy``, in [0, 1]; some with ``certified``, in [0, 1], for another column.
        images: Number of images; None if it is not known.
        kind: Kind of the images.
    """
    width = max(len("attack"), *(len(row["name"]) for row in rows))
    columns = {"accuracy": "accuracy (%)", "certified": "certified (%)"}
    columns = {name: title for name, title in columns.items() if any(name in row for row in rows)}
    number = f", {images:,} {kind} images" if images else ""
    lines = ["  ".join([f"{'attack':<{width}}", *columns.values()]) + number]
    lines.append("-" * len("  ".join([" " * width, *columns.values()])))
    for row in rows:
        cells = [f"{100 * row[name]:.2f}" if name in row else "" for name in columns]
        aligned = [f"{cell:>{len(title)}}" for cell, title in zip(cells, columns.values(), strict=True)]
        lines.append("  ".join([f"{row['name']:<{width}}", *aligned]).rstrip())
    return "\n" + "\n".join(lines)


def _check_consistency(attacks: list[NamedAttack], rows: list[dict[str, Any]], images: int) -> None:
    robust_counts = [round(row["accuracy"] * images) for row in rows]
    results = [
        (named.attack.settings(), parse_eps(named.eps, named.attack.norm), count)
        for named, count in zip(attacks, robust_counts[1:], strict=True)
    ]
    if problems := find_contradictions(results, robust_counts[0]):
        raise ValueError(f"the evaluation is broken, no number is reported: {'; '.join(problems)}")


def _count_images(loaders: Any, limit: float) -> int | None:
    loaders = loaders if isinstance(loaders, list) else [loaders]
    sets: list[Any] = [getattr(loader, "labels", getattr(loader, "dataset", None)) for loader in loaders]
    try:
        # Lightning's limit is a fraction if it is a float, and a number of batches if it is an int.
        return sum(len(images) for images in sets) if isinstance(limit, float) and limit == 1.0 else None
    except TypeError:  # a stream has no length
        return None
