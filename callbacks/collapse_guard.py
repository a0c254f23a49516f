"""The collapse guard: find a training that has collapsed while it runs, and say why."""

from typing import Any, Literal, TypeAlias, get_args

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from callbacks.held_out_check import HeldOutCheck
from callbacks.host_copy import HostCopy
from callbacks.recovery import Recovery
from callbacks.run_events import RunEvents
from callbacks.step_measurement import StepMeasurement
from rampart.collapse import Alarm, CollapseDetector, Signs, read_signs

Action: TypeAlias = Literal["none", "warn", "stop", "recover"]

REMEDIES = {
    "constant output": "raise eps slowly (ramp.adaptive), start from weights of a smaller eps (ramp.init_from) or "
    "lower the learning rate",
    "catastrophic overfitting": "use more attack steps (model.attack.steps), a random start, or a smaller eps",
    "non-finite logits": "lower the learning rate, or clip gradients (trainer.gradient_clip_val)",
}


class CollapseGuard(Callback):
    """Watch training for three kinds of collapse, and warn of them or end the run.

    A constant output: at a large eps a network may give the same output for all images, with a loss of ln C for C
    classes, and learn nothing more. Catastrophic overfitting: with few attack steps it may become robust to the
    training attack alone, which looks like success. Logits that are NaN or infinite.

    The guard measures every tenth optimizer step, from what the step has computed anyway, and checks held-out
    images. It changes nothing in training. All processes decide alike, and a resumed run decides like an
    uninterrupted one. Each event is a line of the log, a text in TensorBoard and a line of `events.jsonl` in the run's
    folder; measurements are `guard/` curves in TensorBoard.

    Args:
        action: What to do: `warn` once per collapse, `stop` the run with an error, `recover` from it, or `none` to
            measure nothing. A recovery returns to weights, optimizer and schedules of a healthy step, lowers eps, or
            adds an attack step against overfitting, and raises eps again more slowly. Checkpoints then hold the healthy
            states too.
        every_n_steps: Optimizer steps from one measurement to the next.
        grace_steps: Optimizer steps in which a network that never learned may have a constant output.
        patience_steps: Optimizer steps in which a network may not start to learn, as in a warm-up of the learning rate.
        check_share: Cost of checks by PGD-10 on held-out images, as a share of training's gradient evaluations; 0 for
            no checks.
        recoveries: Largest number of recoveries in a run; the next collapse ends it with an error.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        action: Action = "warn",
        every_n_steps: int = 10,
        grace_steps: int = 150,
        patience_steps: int = 2000,
        check_share: float = 0.005,
        recoveries: int = 5,
    ) -> None:
        if action not in get_args(Action):
            raise ValueError(f"guard.action must be none, warn, stop or recover, got {action!r}")
        if every_n_steps < 1:
            raise ValueError(f"guard.every_n_steps must be at least 1, got {every_n_steps}")
        for name, number in (
            ("grace_steps", grace_steps),
            ("patience_steps", patience_steps),
            ("recoveries", recoveries),
        ):
            if number < 0:
                raise ValueError(f"guard.{name} must be 0 or more, got {number}")
        if not 0 <= check_share <= 1:
            raise ValueError(f"guard.check_share must be in [0, 1], got {check_share}")
        self.action, self.every_n_steps = action, every_n_steps
        self.detector = CollapseDetector(grace_steps, patience_steps)
        self.events = RunEvents("guard/events")
        self._measurement, self._check = StepMeasurement(), HeldOutCheck(check_share)
        self._recovery = Recovery(recoveries) if action == "recover" else None
        self._off = action == "none"
        self._measured: HostCopy | None = None
        self._pending: tuple[int, float, HostCopy | list[float]] | None = None  # step, eps, sums
        self._checked: tuple[int, float, HostCopy | list[float]] | None = None  # that of a check
        self._logged_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module offers what the guard reads.

        Raises:
            TypeError: If it lacks ``last_step`` or ``network``, or no ramp can be set back in a recovery.
        """
        self._off = self.action == "none"
        if stage != "fit" or self._off:
            return
        for attribute in ("last_step", "network"):
            if not hasattr(pl_module, attribute):
                raise TypeError(
                    f"CollapseGuard reads `{attribute}`, which {type(pl_module).__name__} lacks: set it in "
                    "training_step, or leave the guard out"
                )
        if self._recovery is not None:
            self._recovery.setup(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the events up to here, and remove from the file those that a resumed run has not reached yet."""
        if not self._off:
            self._logged_at = -1
            self._check.load_images(trainer)
            self.events.write(trainer)
            if self._recovery is not None:
                self._recovery.start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the batch if its step is measured."""
        due = not self._off and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._measurement.start()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the step, before its gradient is clipped."""
        self._measured = self._measurement.finish(trainer, pl_module) or self._measured

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a measured step, read the measurement before it, and act on what it shows.

        Raises:
            ValueError: If the action is ``stop`` and training has collapsed.
        """
        self._measurement.stop()
        module: Any = pl_module
        measured, self._measured = self._measured, None
        if self._recovery is not None and (alarm := self._recovery.find_nonfinite(trainer, module)):
            self._act(trainer, module, alarm, module.eps)
            return
        if measured is None:
            self._check_module(trainer, module)
            return
        step, eps = trainer.global_step - 1, module.last_step.eps
        pending, self._pending = self._pending, (step, eps, measured)
        if pending is not None:
            self._judge(trainer, module, *pending)
        checked, self._checked = self._checked, None  # none after a recovery
        if checked is not None:
            self._judge_check(trainer, module, *checked)
        detector = self.detector
        asked = detector.doubts, detector.wants_confirmation, detector.at_new_low
        if eps > 0 and self._check.is_due(trainer, module, *asked):
            self._checked = step, eps, self._check.run(trainer, module, eps)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the watch of a step that was interrupted."""
        self._measurement.stop()
        if self._recovery is not None:
            self._recovery.end(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the memory of the healthy states."""
        if self._recovery is not None and stage == "fit":
            self._recovery.end(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's state, the measurements that are not read yet, and the events."""
        return {
            "detector": self.detector.state_dict(),
            "pending": _read(self._pending),
            "checked": _read(self._checked),
            "check": self._check.state(),
            "events": self.events.state(),
            "recovery": None if self._recovery is None else self._recovery.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.detector.load_state_dict(state_dict["detector"])
        self._pending, self._checked = (
            None if waiting is None else (int(waiting[0]), float(waiting[1]), waiting[2])
            for waiting in (state_dict["pending"], state_dict["checked"])
        )
        self._check.restore(state_dict["check"])
        self.events.restore(state_dict["events"])
        if self._recovery is not None and state_dict["recovery"] is not None:
            self._recovery.load_state_dict(state_dict["recovery"])

    def _check_module(self, trainer: Trainer, module: Any) -> None:
        """Turn the guard off if the first step has left no values."""
        if not self._off and module.last_step is None and trainer.global_step > 0:
            self._off = True
            rank_zero_warn(
                f"The collapse guard is off: training_step of {type(module).__name__} does not set `last_step`"
            )

    def _judge(self, trainer: Trainer, module: Any, step: int, eps: float, sums: HostCopy | list[float]) -> None:
        """Add a measurement to the detector, and act on alarms."""
        signs = read_signs(sums if isinstance(sums, list) else sums.read())
        images = signs.images * trainer.accumulate_grad_batches
        self._check.add_training(trainer, module, images, self.every_n_steps)
        self._log(trainer, step, signs)
        for alarm in self.detector.update(signs, step):
            self._act(trainer, module, alarm, eps)
        if self._recovery is not None and self.detector.learned and self.detector.healthy:
            self._recovery.keep(trainer, module)

    def _judge_check(
        self, trainer: Trainer, module: Any, step: int, eps: float, counts: HostCopy | list[float]
    ) -> None:
        """Add a held-out check to the detector, and act on alarms."""
        images, robust, lost = map(int, counts if isinstance(counts, list) else counts.read())
        if images and trainer.is_global_zero and getattr(trainer, "log_every_n_steps", 0):
            values = {"guard/held_out_acc": robust / images, "guard/held_out_acc_pgd10": (robust - lost) / images}
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
        for alarm in self.detector.check(images, robust, lost, step):
            self._act(trainer, module, alarm, eps)

    def _act(self, trainer: Trainer, module: Any, alarm: Alarm, eps: float) -> None:
        seen = f" ({alarm.seen})" if alarm.seen else ""
        found = f"{alarm.kind} at step {alarm.step}, eps {eps:.4g}: {alarm.reason}{seen}"
        event = {"step": alarm.step, "eps": eps, "kind": alarm.kind, "action": self.action}
        if self.action == "stop":
            line = f"training stopped: {found}; {REMEDIES[alarm.kind]} (guard.action stop)"
            self.events.add(trainer, line, event, shown=False)
            raise ValueError(line)
        if self._recovery is not None:
            self._recover(trainer, module, alarm, found, event)
            return
        line = f"Collapse guard: {found}; {REMEDIES[alarm.kind]}; --guard.action stop or recover acts on it"
        self.events.add(trainer, line, event)

    def _recover(self, trainer: Trainer, module: Any, alarm: Alarm, found: str, event: dict[str, Any]) -> None:
        """Return to a healthy state, and forget the measurements of the collapse."""
        assert self._recovery is not None
        change = self._recovery.recover(trainer, module, stronger=alarm.kind == "catastrophic overfitting")
        if change is None:
            line = (
                f"training stopped after {self._recovery.times} recoveries (guard.recoveries): {found}; "
                "lower eps or the learning rate"
            )
            self.events.add(trainer, line, event, shown=False)
            raise ValueError(line)
        self.detector.reset()
        self._measured = self._pending = self._checked = None
        self.events.add(trainer, f"Collapse guard: {found}; recovery {self._recovery.times}: {change}", event)

    def _log(self, trainer: Trainer, step: int, signs: Signs) -> None:
        """Log a measurement, at most once per logging interval of the trainer."""
        every = getattr(trainer, "log_every_n_steps", 0)
        if not every or not trainer.is_global_zero or step // every == self._logged_at:
            return
        self._logged_at = step // every
        values = {
            "guard/information": signs.information,
            "guard/spread": signs.spread,
            "guard/top_share": signs.top_share,
            "guard/grad_norm": signs.grad_norm,
            "guard/alignment": signs.alignment,
        }
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in values.items() if value is not None}, step)


def _read(waiting: tuple[int, float, HostCopy | list[float]] | None) -> list[Any] | None:
    """Return step, eps and values as plain values."""
    if waiting is None:
        return None
    return [*waiting[:2], waiting[2] if isinstance(waiting[2], list) else waiting[2].read()]
