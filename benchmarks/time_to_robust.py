"""Train an MNIST config and record how robust it is after how much compute; draw several such records.

    python -m benchmarks.time_to_robust fit OUT.json --every 4 -- --config configs/mnist/fast.yaml --data.data_dir DIR
    python -m benchmarks.time_to_robust plot FIGURE.png NAME=OUT.json ANOTHER=OTHER.json

What stands behind `--` goes to `cli.py fit`. Compute is counted as gradient evaluations of the network per training
image: every image of every forward pass that a gradient follows, in attacks and updates alike; an interval counts
twice. Robust accuracy is at eps 0.4, on the 1,000 training images that `val_size: 1000` holds out: under PGD-200 from
random starts (0.005 a step, the paper's protocol), and under PGD-20 from mid-gray, which masked gradients do not stop.
The time that it takes is not counted. A record is written anew after each measurement, so a run that was cut
short leaves its own.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from commands.command_line import RampartCLI
from rampart.attacks import PGD, Level
from rampart.bounds.interval import Interval
from rampart.files import provenance

EPS = 0.4
ATTACKS = {
    "robust": PGD(steps=200, step_size=0.005),
    "robust_from_gray": PGD(
        steps=20, relative_step_size=0.1, step_schedule="linear", start=Level(0.43, 0.57), iterate="best"
    ),
}


class TimeToRobust(Callback):
    """Measure every few epochs, and after the last.

    Args:
        every: Epochs between two measurements.
        out: The record's file.
        command: What `fit` was called with, for the record.
    """

    def __init__(self, every: int, out: Path, command: list[str]) -> None:
        self._every, self._out = every, out
        attacks = {name: asdict(attack) for name, attack in ATTACKS.items()}
        self._record: dict[str, Any] = {"command": command, "attacks": attacks, "eps": EPS, "points": []}
        self._images = 0
        self._away = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        network = pl_module.network
        assert isinstance(network, nn.Module)
        network.register_forward_hook(self._count)
        self._record |= {"seed": pl_module.run_seed, **provenance()}
        self._start, self._away = time.monotonic(), 0.0  # the validation before the first step is none of its time
        self._measure(trainer, pl_module.evaluated_network)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Stop the clock."""
        self._left = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Let it go on."""
        self._away += time.monotonic() - self._left

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where it is due."""
        done = trainer.current_epoch + 1
        if done % self._every == 0 or done == trainer.max_epochs:
            self._measure(trainer, pl_module.evaluated_network)

    def _count(self, _network: nn.Module, _inputs: Any, logits: Tensor | Interval) -> None:
        if isinstance(logits, Interval):  # of its middle and of its radius
            self._images += 2 * len(logits) * logits.lower.requires_grad
        else:
            self._images += len(logits) * logits.requires_grad

    def _measure(self, trainer: Trainer, network: Any) -> None:
        start, counted = time.monotonic(), self._images
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        held_out, trained_on = data.val_dataloader(), data.train_dataloader()
        standing, clean, training = dict.fromkeys(ATTACKS, 0), 0, network.training
        network.eval()
        generator = torch.Generator().manual_seed(0)
        for images, labels, _index in held_out:
            with torch.no_grad():
                right = network(images).argmax(1) == labels
            clean += int(right.sum())
            for name, attack in ATTACKS.items() if right.any() else ():
                adv = attack(network, images[right], labels[right], EPS, generator=generator)
                with torch.no_grad():
                    standing[name] += int((network(adv).argmax(1) == labels[right]).sum())
        network.train(training)
        self._images = counted
        point = {
            "epochs": trainer.current_epoch + 1 if trainer.global_step else 0,
            "gradient_evaluations_per_image": self._images / len(trained_on.labels),
            "seconds": start - self._start - self._away,
            "clean": clean,
            **standing,
            "images": len(held_out.labels),
        }
        self._record["points"].append(point)
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(self._record, indent=2) + "\n")
        print(json.dumps(point), flush=True)
        self._away += time.monotonic() - start


class RecordingCLI(RampartCLI):
    """The command line, with the record among the trainer's callbacks."""

    record: TimeToRobust

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the record."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.record)  # type: ignore[attr-defined]
        return trainer


def figure(records: dict[str, dict[str, Any]]) -> Figure:
    """Robust accuracy over gradient evaluations and over wall time."""
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


def main() -> None:
    """Train and record, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train and record")
    fit.add_argument("out", type=Path)
    fit.add_argument("--every", type=int, default=4, help="epochs between two measurements")
    fit.add_argument("arguments", nargs="+", help="of cli.py fit, behind --")
    plot = commands.add_parser("plot", help="draw records")
    plot.add_argument("figure", type=Path)
    plot.add_argument("records", nargs="+", metavar="NAME=FILE")
    given = parser.parse_args()
    if given.command == "plot":
        if unnamed := [record for record in given.records if "=" not in record]:
            plot.error(f"records must be NAME=FILE, the name for the figure's legend, got {unnamed[0]}")
        records = [record.partition("=") for record in given.records]
        figure({name: json.loads(Path(file).read_text()) for name, _, file in records}).savefig(given.figure, dpi=120)
        return
    arguments = ["fit", *given.arguments, "--data.val_size=1000", "--data.split_seed=0"]
    RecordingCLI.record = TimeToRobust(given.every, given.out, arguments)
    RecordingCLI(arguments)


if __name__ == "__main__":
    main()
