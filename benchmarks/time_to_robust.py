"""Train an MNIST config and record its robust accuracy over compute; plot several such records.

    python -m benchmarks.time_to_robust fit OUT.json --every 4 -- --config configs/mnist/fast.yaml --data.data_dir DIR
    python -m benchmarks.time_to_robust plot FIGURE.png NAME=OUT.json ANOTHER=OTHER.json

The arguments after `--` go to `cli.py fit`. Compute is measured in gradient evaluations of the network per training
image: every image of every forward pass that a gradient follows, in attacks and in updates; an interval counts twice.
Robust accuracy is at eps 0.4, on the 1,000 training images that `val_size: 1000` holds out: under PGD-200 from random
starts (step size 0.005, the paper's protocol), and under PGD-20 from mid-gray, which gradient masking does not stop.
The time of these measurements is not counted. The record is written after each measurement, so an interrupted run
has one too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks.record import Record, new_file
from commands.command_line import RampartCLI
from rampart.attacks import PGD, Level
from rampart.bounds import Interval
from rampart.evaluation import robust_mask

EPS = 0.4
ATTACKS = {
    "robust": PGD(steps=200, step_size=0.005),
    "robust_from_gray": PGD(
        steps=20, relative_step_size=0.1, step_schedule="linear", start=Level(0.43, 0.57), iterate="best"
    ),
}


class TimeToRobust(Callback):
    """Measure robust accuracy every few epochs, and after the last one.

    Args:
        every: Number of epochs between two measurements.
        out: JSON file to write.
    """

    def __init__(self, every: int, out: Path) -> None:
        self._every, self._out = every, out
        self._points: list[dict[str, Any]] = []
        self._images = 0
        self._away = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the counts and the clock, and measure before the first step."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        network.register_forward_hook(self._count)
        seed: Any = pl_module.run_seed
        with self._evaluation(pl_module):
            self._record = Record(self._out, seed)
        self._start, self._away = time.monotonic(), 0.0  # leaves out the validation before the first step
        with self._evaluation(pl_module):
            self._measure(trainer, pl_module.evaluated_network)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Stop the clock."""
        self._left = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Restart the clock."""
        self._away += time.monotonic() - self._left

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every few epochs, and after the last."""
        done = trainer.current_epoch + 1
        if done % self._every == 0 or done == trainer.max_epochs:
            with self._evaluation(pl_module):
                self._measure(trainer, pl_module.evaluated_network)

    def _evaluation(self, module: Any) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = module.execution.evaluation(module.device.type)
        return context

    def _count(self, _network: nn.Module, _inputs: Any, logits: Tensor | Interval) -> None:
        if isinstance(logits, Interval):  # one evaluation of its middle, one of its radius
            self._images += 2 * len(logits) * logits.lower.requires_grad
        else:
            self._images += len(logits) * logits.requires_grad

    def _measure(self, trainer: Trainer, network: Any) -> None:
        start, counted = time.monotonic(), self._images
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        held_out, trained_on = data.val_dataloader(), data.train_dataloader()
        robust, clean, training = dict.fromkeys(ATTACKS, 0), 0, network.training
        network.eval()
        generator = torch.Generator().manual_seed(0)
        for images, labels, _index in held_out:
            with torch.no_grad():
                correct = network(images).argmax(1) == labels
            clean += int(correct.sum())
            for name, attack in ATTACKS.items():
                robust[name] += int(robust_mask(network, images, labels, attack, EPS, generator, correct).sum())
        network.train(training)
        self._images = counted
        point = {
            "epochs": trainer.current_epoch + 1 if trainer.global_step else 0,
            "gradient_evaluations_per_image": self._images / len(trained_on.labels),
            "seconds": start - self._start - self._away,
            "clean": clean,
            **robust,
            "images": len(held_out.labels),
        }
        self._points.append(point)
        attacks = {name: asdict(attack) for name, attack in ATTACKS.items()}
        self._record.write({"attacks": attacks, "eps": EPS, "points": self._points})
        print(json.dumps(point), flush=True)
        self._away += time.monotonic() - start


class RecordingCLI(RampartCLI):
    """The command line, with a callback that measures robust accuracy over compute."""

    measurement: TimeToRobust

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callback."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.measurement)  # type: ignore[attr-defined]
        return trainer


def plot_records(records: dict[str, dict[str, Any]]) -> Figure:
    """Plot robust accuracy over gradient evaluations and over wall time."""
    drawing = Figure(figsize=(11, 5), layout="constrained")
    evaluations, minutes = drawing.subplots(1, 2, sharey=True)
    for number, (name, record) in enumerate(records.items()):
        points = record["points"]
        for attack, line, label in (
            ("robust", "-", f"{name}: PGD-200"),
            ("robust_from_gray", ":", f"{name}: PGD-20 from mid-gray"),
        ):
            if attack not in points[0]:
                continue
            accuracy = [100 * point[attack] / point["images"] for point in points]
            style = {"marker": "o", "color": f"C{number}", "linestyle": line}
            evaluations.plot([p["gradient_evaluations_per_image"] for p in points], accuracy, label=label, **style)
            minutes.plot([p["seconds"] / 60 for p in points], accuracy, **style)
    evaluations.set(xlabel="gradient evaluations per training image", ylabel="accuracy under PGD at 0.4 (%)")
    minutes.set(xlabel="minutes of training")
    for axes in (evaluations, minutes):
        axes.grid(alpha=0.3)
        axes.set_ylim(-2, 102)
    drawing.legend(*evaluations.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawing


def main(argv: Sequence[str] | None = None) -> None:
    """Train and record, or plot records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train and record")
    fit.add_argument("out", type=new_file, help="JSON file to write")
    fit.add_argument("--every", type=int, default=4, help="epochs between two measurements")
    fit.add_argument("arguments", nargs="+", help="arguments of cli.py fit, after --")
    plot = commands.add_parser("plot", help="plot records")
    plot.add_argument("figure", type=Path, help="image file to write")
    plot.add_argument("records", nargs="+", metavar="NAME=FILE", help="records, with a name for the legend")
    given = parser.parse_args(argv)
    if given.command == "plot":
        if unnamed := [record for record in given.records if "=" not in record]:
            plot.error(f"records must be NAME=FILE, the name for the figure's legend, got {unnamed[0]}")
        records = [record.partition("=") for record in given.records]
        plot_records({name: json.loads(Path(file).read_text()) for name, _, file in records}).savefig(
            given.figure, dpi=120
        )
        return
    arguments = ["fit", *given.arguments, "--data.val_size=1000", "--data.split_seed=0"]
    RecordingCLI.measurement = TimeToRobust(given.every, given.out)
    RecordingCLI(arguments)


if __name__ == "__main__":
    main()
