"""Values of single training steps for loggers, progress bar and callbacks, logged in little time on the host."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric


class TrainingStep(NamedTuple):
    """Values that a training step has computed on its batch, for callbacks.

    Attributes:
        images: ``(N, C, H, W)``, float, in [0, 1], the clean images.
        labels: ``(N,)``, int64.
        logits: ``(N, classes)``, without a graph: those of the adversarial images, or the worst-case logits of a bound.
        eps: Radius of the attack, on the pixel scale.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    eps: float


def log_step(
    module: LightningModule, values: Mapping[str, Tensor], shown: Collection[str], averaged: Mapping[str, Metric]
) -> None:
    """Log the values of a training step, and metrics that are averaged over the epoch, as ``module.log`` does.

    Lightning's ``log`` takes a third of a millisecond per value and step. Here it is called in the first step of an
    epoch; later values are written to where it has stored the first.

    Args:
        module: Module whose ``training_step`` is running.
        values: Scalars of this step, by name.
        shown: Names of the values that the progress bar shows.
        averaged: Metrics by name, shown by the progress bar after the epoch.
    """
    trainer = module.trainer
    if trainer.barebones:
        return
    results = trainer.fit_loop.epoch_loop._results
    for name, value in values.items():
        entry = results.get(f"training_step.{name}")
        if entry is not None:
            entry.meta.prog_bar = name in shown  # See `hide_from_bar`.
        if entry is None or entry.has_reset:
            module.log(name, value, prog_bar=name in shown, on_step=True, on_epoch=False)
        else:
            entry.value = entry._forward_cache = _as_stored(value.detach())
    for name, metric in averaged.items():
        entry = results.get(f"training_step.{name}")
        if entry is None or entry.has_reset:
            module.log(name, metric, prog_bar=True, on_step=False, on_epoch=True)


def hide_from_bar(module: LightningModule, shown: Collection[str]) -> None:
    """Keep Lightning from reading values on an accelerator after every step, since each would wait for the device.

    The progress bar reads them whenever it is redrawn, before this is called at the end of the step.

    Args:
        module: Module whose training step has ended.
        shown: Names of the values that the progress bar shows.
    """
    results = module.trainer.fit_loop.epoch_loop._results
    for name in shown:
        entry = results.get(f"training_step.{name}")
        if entry is not None and entry.value.device.type != "cpu":
            entry.meta.prog_bar = False


def _as_stored(value: Tensor) -> Tensor:
    """Return a value in the form that Lightning stores: a scalar, at least float32."""
    value = value if value.dtype in (torch.float32, torch.float64) else value.float()
    return value if value.ndim == 0 else value.squeeze()
