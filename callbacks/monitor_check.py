"""Monitored metrics that no run logs are refused before an epoch is trained for nothing."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class MonitorCheckCallback(Callback):
    """Refuse a callback's ``monitor`` that is not among the metrics of validation's check and the first batch.

    A metric may come at the end of an epoch alone, if the module or a callback of the user logs there: then it can't be
    known before.
    """

    _of_validation: frozenset[str] = frozenset()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what validation logs; a monitored metric of validation must be among it."""
        self._of_validation = frozenset(trainer.callback_metrics)
        if not self._of_validation:
            return  # There is no validation, or it logs nothing.
        for option, monitor in _monitors(trainer):
            if monitor.startswith("val") and monitor not in self._of_validation:
                _refuse(option, monitor, self._of_validation)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check against what validation and the run's first batch have logged."""
        if not self._of_validation:
            return
        loop = trainer.fit_loop.epoch_loop
        known = self._of_validation | {result.meta.name for result in loop._results.values()}
        known |= frozenset(trainer.callback_metrics)
        self._of_validation = frozenset()  # once
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(_may_log(each) for each in [pl_module, *callbacks]):
            return
        for option, monitor in _monitors(trainer):
            if monitor not in known:
                _refuse(option, monitor, known)


def _monitors(trainer: Any) -> list[tuple[str, str]]:
    """Return what callbacks monitor, each with the option that says so."""
    found = []
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            own = type(callback).__name__ == "RunCheckpoint"
            found.append(("checkpoint.monitor" if own else f"{type(callback).__name__}'s monitor", monitor))
    return found


def _may_log(hooks: Any) -> bool:
    """Return whether code of the user does something at an epoch's end."""
    code = getattr(type(hooks).on_train_epoch_end, "__module__", "")
    return code.split(".")[0] not in ("pytorch_lightning", "lightning_modules", "callbacks", "commands")


def _refuse(option: str, monitor: str, known: frozenset[str]) -> None:
    raise ValueError(
        f"{option} must be a metric that the run logs, got {monitor!r}: there are {', '.join(sorted(known))}"
    )
