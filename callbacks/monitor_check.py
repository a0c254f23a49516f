"""Early check that the metrics that callbacks monitor are logged."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class MonitorCheckCallback(Callback):
    """Raise an error if a callback monitors a metric that the run does not log.

    The known metrics are those of validation's sanity check and of the first training batch. Nothing is checked if the
    module or a custom callback has a hook at the end of an epoch, where it may log more metrics.
    """

    _validation_metrics: frozenset[str] = frozenset()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics that validation logs, and check the monitored validation metrics."""
        self._validation_metrics = frozenset(trainer.callback_metrics)
        if not self._validation_metrics:
            return  # There is no validation, or it logs nothing.
        for option, monitor in _monitors(trainer):
            if monitor.startswith("val") and monitor not in self._validation_metrics:
                _raise_unknown(option, monitor, self._validation_metrics)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check all monitored metrics."""
        if not self._validation_metrics:
            return
        loop = trainer.fit_loop.epoch_loop
        known = self._validation_metrics | {result.meta.name for result in loop._results.values()}
        known |= frozenset(trainer.callback_metrics)
        self._validation_metrics = frozenset()  # once
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(_may_log(each) for each in [pl_module, *callbacks]):
            return
        for option, monitor in _monitors(trainer):
            if monitor not in known:
                _raise_unknown(option, monitor, known)


def _monitors(trainer: Any) -> list[tuple[str, str]]:
    """Return each callback's option and monitored metric."""
    found = []
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            own = type(callback).__name__ == "RunCheckpoint"
            found.append(("checkpoint.monitor" if own else f"{type(callback).__name__}'s monitor", monitor))
    return found


def _may_log(hooks: Any) -> bool:
    """Return True if a custom module or callback has a hook at the end of an epoch."""
    code = getattr(type(hooks).on_train_epoch_end, "__module__", "")
    return code.split(".")[0] not in ("pytorch_lightning", "lightning_modules", "callbacks", "commands")


def _raise_unknown(option: str, monitor: str, known: frozenset[str]) -> None:
    raise ValueError(
        f"{option} must be a metric that the run logs, got {monitor!r}: there are {', '.join(sorted(known))}"
    )
