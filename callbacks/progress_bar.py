"""The progress bar of an adversarial training run."""

import math
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

# Accuracies first: a narrow terminal cuts the end.
SHORT_NAMES = {
    "val/clean_acc": ("clean", "{:.3f}"),
    "val/robust_acc": ("robust", "{:.3f}"),
    "val/certified_acc": ("certified", "{:.3f}"),
    "train/eps": ("eps", "{:.3f}"),
    "train/adv_loss": ("loss", "{:.2f}"),
}
SECONDS = 0.1
"""Least time between two updates within an epoch."""

LINE = "{desc} {percentage:3.0f}% {elapsed}<{remaining}{postfix}"


class RampartProgressBar(TQDMProgressBar):
    """Show epoch, remaining time of the run, clean and robust accuracy, eps and loss in 80 columns.

    With certified accuracy it takes 17 columns more; a narrow terminal cuts its end.

    On a CPU, the bar of a test counts forward passes of the network, so that it moves during a long attack on one
    batch. On an accelerator it counts batches: an attack's steps are replayed without calling the network's layers.

    Args:
        refresh_rate: Number of batches between two updates of the bar. Updates are at least a tenth of a second apart,
            because each waits for the device.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate)
        self._counter: Any = None
        self._updated = 0.0

    def init_train_tqdm(self) -> Tqdm:
        """Create the bar of the whole run."""
        bar = super().init_train_tqdm()
        bar.bar_format = LINE
        return bar

    def init_test_tqdm(self) -> Tqdm:
        """Create the bar of the whole test."""
        bar = super().init_test_tqdm()
        bar.bar_format = LINE
        return bar

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the bar of all epochs."""
        super().on_train_start()
        self.train_progress_bar.total = count_run_batches(trainer)
        self._started = False

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Show the epoch, counted from 1."""
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        bar, batches = self.train_progress_bar, trainer.num_training_batches
        if not self._started and math.isfinite(batches):
            bar.n = bar.initial = trainer.current_epoch * int(batches)
        bar.set_description_str(f"Epoch {trainer.current_epoch + 1}{of}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress of the run; the speed is that of batches since the run was resumed."""
        bar, batches = self.train_progress_bar, trainer.num_training_batches
        done = batch_idx + 1 + (trainer.current_epoch * int(batches) if math.isfinite(batches) else 0)
        if not self._started:
            bar.initial, self._started = done - 1, True
        due = done % self.refresh_rate == 0 and time.monotonic() - self._updated >= SECONDS
        if not bar.disable and (due or batch_idx + 1 == batches):
            self._updated, bar.n = time.monotonic(), done
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting: forward passes by a hook on the network's last layer, or batches."""
        super().on_test_start(trainer, pl_module)
        module: Any = pl_module
        self._passes = 0
        plain = [layer for layer in module.network.modules() if not isinstance(layer, torch.jit.ScriptModule)]
        layers = [layer for layer in plain if not list(layer.children())]
        by_pass = bool(layers) and module.device.type == "cpu"
        if by_pass and not self.test_progress_bar.disable:
            self._counter = layers[-1].register_forward_pre_hook(self._count)
        expected = 1 + sum(_estimate_passes(named.attack.settings()) for named in module.test_attacks) if by_pass else 1
        batches = sum(trainer.num_test_batches)
        self.test_progress_bar.total = expected * int(batches) if math.isfinite(batches) else None
        self._per_batch = 0

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """Keep Lightning from resetting the bar for each loader: one bar counts all batches."""

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Estimate the total number of forward passes from those counted so far."""
        self._per_batch += 1
        bar, batches = self.test_progress_bar, sum(trainer.num_test_batches)
        bar.n = self._passes or self._per_batch
        bar.total = math.ceil(bar.n / self._per_batch * batches) if math.isfinite(batches) else None
        bar.refresh()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting."""
        super().on_test_end(trainer, pl_module)
        self._stop_counting()

    def on_exception(self, *_: Any) -> None:
        """Stop counting."""
        self._stop_counting()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return short names and values for the bar; without validation it shows the training accuracy."""
        metrics = super().get_metrics(trainer, pl_module)
        shown: dict[str, Any] = {}
        for name, (short, form) in SHORT_NAMES.items():
            value = metrics.pop(name, metrics.pop(f"{name}_step", None))
            if value is not None:
                shown[short] = form.format(value) if isinstance(value, float) else value
        training = metrics.pop("train/adv_acc", None)
        if training is not None and "robust" not in shown:
            shown = {"train": f"{training:.3f}"} | shown
        metrics.pop("v_num", None)
        return shown | metrics

    def _count(self, *_: Any) -> None:
        self._passes += 1
        bar = self.test_progress_bar
        if bar.total is None or self._passes < bar.total:
            bar.update(1)

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.remove()
            self._counter = None


def count_run_batches(trainer: Trainer) -> int | None:
    """Return the number of training batches of the whole run; None if it has no known end."""
    limits = []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps * trainer.accumulate_grad_batches)
    if (trainer.max_epochs or -1) > 0:
        limits.append(int(min(trainer.max_epochs * trainer.num_training_batches, 1e12)))  # type: ignore[operator]
    known = [limit for limit in limits if limit < 1e12]
    return min(known) if known else None


def _estimate_passes(settings: dict[str, Any]) -> int:
    numbers = [settings.get(name, 1) for name in ("steps", "queries", "restarts")]
    return math.prod(number for number in numbers if isinstance(number, int)) + 1
