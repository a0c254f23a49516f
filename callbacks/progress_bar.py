"""The progress bar of an adversarial training run."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar

SHORT_NAMES = {
    "train/eps": "eps",
    "train/adv_loss": "loss",
    "train/adv_acc": "train_robust",
    "val/clean_acc": "clean",
    "val/robust_acc": "robust",
}


class RampartProgressBar(TQDMProgressBar):
    """Shows eps, loss, and clean and robust accuracy under short names, in this order.

    Args:
        refresh_rate: Batches from one update to the next; each waits for the device.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Name and order what the bar shows."""
        metrics = super().get_metrics(trainer, pl_module)
        shown: dict[str, Any] = {}
        for name, short in SHORT_NAMES.items():
            value = metrics.pop(name, metrics.pop(f"{name}_step", None))
            if value is not None:
                shown[short] = f"{value:.3f}" if isinstance(value, float) else value
        metrics.pop("v_num", None)
        return shown | metrics
