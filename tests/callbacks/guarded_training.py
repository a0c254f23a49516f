"""Short trainings under the collapse guard."""

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from callbacks import CollapseGuard
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.data import TensorBatches
from rampart.objectives import Objective


def stripes(classes: int = 4, size: int = 64, labels: Tensor | None = None) -> TensorBatches:
    """Return batches of 8x8 images, easy to learn: the class is the bright pair of rows."""
    labels = torch.arange(size) % classes if labels is None else labels
    images = torch.randint(60, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for row in range(2):
        images[torch.arange(len(labels)), 0, 2 * labels + row] += 180
    return TensorBatches(images, labels, batch_size=8, shuffle=True)


class Head(nn.Module):
    """A convolution and a hidden layer; ``dead`` biases make its output the same for all images."""

    def __init__(self, batchnorm: bool = False, classes: int = 4) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        norm = nn.BatchNorm2d(4) if batchnorm else nn.Identity()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits

    def kill(self) -> None:
        """Set all hidden units to zero."""
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    layer.weight.zero_()
                    layer.bias.fill_(-1)


class Kill(Callback):
    """Make the network's output constant from an optimizer step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.network.kill()


def train(
    folder: Path,
    guard: CollapseGuard | None,
    network: nn.Module | None = None,
    batches: TensorBatches | None = None,
    callbacks: tuple[Callback, ...] = (),
    objective: Objective | None = None,
    attack: PGD | None = None,
    eps: float = 0.1,
    lr: float = 0.01,
    ckpt_path: Path | None = None,
    max_steps: int = 60,
    held_out: Any = None,
    **settings: Any,
) -> Any:
    module = AdversarialClassifier(
        network or Head(),
        eps=eps,
        attack=attack or PGD(steps=2),
        objective=objective,
        optimizer=lambda weights: torch.optim.Adam(weights, lr),
    )
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[*callbacks, *([guard] if guard else [])],
        accelerator="cpu",
        max_steps=max_steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        **{"logger": False, **settings},
    )
    trainer.fit(module, batches or stripes(), held_out, ckpt_path=ckpt_path)
    return module


def read_events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
