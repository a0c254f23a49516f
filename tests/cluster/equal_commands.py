"""Program that runs several commands one after the other, as one process or as one of several."""

import json
import sys
from pathlib import Path

from torch import nn

from cli import main
from datamodules import DigitsDataModule
from datamodules.in_memory import ImageSet

PGD = "{class_path: rampart.attacks.PGD, init_args: {steps: 2}}"
GLOBAL_BATCH = 24
SHARED = [
    "--name=run", "--trainer.sync_batchnorm=true", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--images.num_images=0",
    "--curve.num_images=70", "--trainer.num_sanity_val_steps=0", "--data=tests.cluster.equal_commands.FewDigits",
    "--data.val_size=47", "--data.eval_batch_size=23", "--data.max_shift=2", "--model=AdversarialClassifier",
    "--model.network=tests.cluster.equal_commands.Normed", "--model.eps=0.2", f"--model.attack={PGD}",
    f"--model.val_attack={PGD}", f"--model.test_attacks=[{{eps: 0.2, attack: {PGD}}}]",
]  # fmt: skip
FIT = [
    "fit", *SHARED, "--test_after_fit=false", "--trainer.limit_train_batches=4", "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1", "--ramp.phases=[{epochs: 3, start_eps: 0, end_eps: 0.2}]",
    "--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.01", "--model.lr_scheduler.total_steps=-1",
]  # fmt: skip
FITS = {
    "averaged": [
        "--model.network.double=true", "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1",
        "--trainer.callbacks=callbacks.AveragedWeights", "--trainer.callbacks.decay=0.8",
    ],
    "certified": ["--model.network.double=true", "--model.objective=rampart.objectives.SABR",
                  "--model.objective.target_eps=0.2"],
    "float32": [],
}  # fmt: skip


class FewDigits(DigitsDataModule):
    """Digits of which 103 are tested: in 5 batches of 23, the last one smaller."""

    def read_test(self) -> ImageSet:
        images, labels = super().read_test()
        return ImageSet(images[:103], labels[:103])


class Normed(nn.Sequential):
    """A small network with BatchNorm.

    Args:
        double: Compute in float64, so that rounding changes no sign of a gradient.
    """

    def __init__(self, double: bool = False) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 5, stride=3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        if double:
            self.double()


def run_commands(folder: Path, processes: int, checkpoint: Path | None = None) -> None:
    """Train into ``folder/NAME``, and evaluate a checkpoint, the folder's own if None, in ``folder/evaluations``."""
    launched = [f"--trainer.devices={processes}", f"--trainer.strategy={'auto' if processes == 1 else 'ddp'}"]
    for name, options in FITS.items():
        batch_size = f"--data.batch_size={GLOBAL_BATCH // processes}"
        main([*FIT, *options, batch_size, *launched, f"--runs_dir={folder / name}"])
    checkpoint = checkpoint or last_checkpoint(folder, "float32")
    for command in ("validate", "test", "predict"):
        main([command, *SHARED, *launched, f"--ckpt_path={checkpoint}", f"--runs_dir={folder / 'evaluations'}"])


def last_checkpoint(folder: Path, name: str) -> Path:
    """Return the last checkpoint of a training."""
    return folder / name / "run/fit-0/checkpoints/last.ckpt"


if __name__ == "__main__":
    path, number, from_checkpoint = json.loads(sys.argv[1])
    run_commands(Path(path), number, Path(from_checkpoint))
