"""Resume a run from a checkpoint: read and check the file, and continue with the next batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.plugins.io.wrapper import _WrappingCheckpointIO
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from callbacks.averaged_weights import RAW
from commands.checkpoint_io import WholeFileIO
from commands.epoch_loop import ResumableEpochLoop
from commands.resumed_progress import resumed_progress
from commands.watched_launcher import watch_processes

CLASSES = "optimizer_classes"
SET_BY_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "max_momentum", "min_momentum", "base_momentum"}


def make_resumable(trainer: Trainer) -> None:
    """Make a trainer write whole checkpoints, check those that it reads, and resume exactly."""
    trainer._checkpoint_connector = RunConnector(trainer)
    trainer._signal_connector = NoSignals(trainer)
    watch_processes(trainer)
    loop = trainer.fit_loop
    loop.epoch_loop = ResumableEpochLoop(trainer, loop.min_steps, loop.max_steps)
    try:
        writer = trainer.strategy.checkpoint_io
    except NotImplementedError:  # strategies that write shards by themselves
        return
    if isinstance(writer, _WrappingCheckpointIO):
        writer.checkpoint_io = WholeFileIO()
    elif type(writer) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFileIO()


class NoSignals(_SignalConnector):
    """Install no signal handlers: Lightning's call collectives, and save within an optimizer step."""

    def register_signal_handlers(self) -> None:
        pass


class RunConnector(_CheckpointConnector):
    """Restore a trainer from a checkpoint, with every part checked first."""

    @property
    def _hpc_resume_path(self) -> str | None:
        """Return None: only a checkpoint named on the command line is loaded."""
        return None

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """Add the class names of optimizers and schedulers, which are compared when a run resumes.

        Lightning calls no callback for a checkpoint of weights alone: it gets the averaged weights here.
        """
        checkpoint: dict[str, Any] = super().dump_checkpoint(weights_only)
        if weights_only:
            for callback in _find_callbacks(self.trainer, WeightAveraging):
                callback.on_save_checkpoint(self.trainer, self.trainer.lightning_module, checkpoint)
                checkpoint.pop(RAW, None)
                checkpoint.pop("averaging_state", None)
        else:
            checkpoint[CLASSES] = {
                "optimizer": [type(optimizer).__name__ for optimizer in self.trainer.optimizers],
                "lr_scheduler": [type(config.scheduler).__name__ for config in self.trainer.lr_scheduler_configs],
            }
        return checkpoint

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:  # noqa: ARG002
        """Read the file that rank 0 has chosen: tensors and plain values only."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint_path = getattr(self.trainer, "resume_path", None) or checkpoint_path
        self._ckpt_path = checkpoint_path  # for the message
        with self._explain_errors("layout"):
            super().resume_start(checkpoint_path, weights_only=True)

    def restore_model(self) -> None:
        with self._explain_errors("weights"):
            super().restore_model()

    def restore_datamodule(self) -> None:
        with self._explain_errors("data module's state"):
            super().restore_datamodule()

    def restore_precision_plugin_state(self) -> None:
        with self._explain_errors("precision's state"):
            super().restore_precision_plugin_state()

    def restore_callbacks(self) -> None:
        """Restore the state of each callback, without its paths."""
        if not self._loaded_checkpoint:
            return
        with self._explain_errors("callbacks' state"):
            fitting = self.trainer.state.fn == TrainerFn.FITTING
            if fitting and RAW in self._loaded_checkpoint and not _find_callbacks(self.trainer, WeightAveraging):
                raise ValueError("it holds averaged weights, and trainer.callbacks has no callbacks.AveragedWeights")
            call._call_callbacks_on_load_checkpoint(self.trainer, self._loaded_checkpoint)
            _drop_paths(self._loaded_checkpoint.get("callbacks", {}))
            call._call_callbacks_load_state_dict(self.trainer, self._loaded_checkpoint)

    def restore_loops(self) -> None:
        """Restore the progress of training; other commands begin at their first batch."""
        trainer = self.trainer
        if not self._loaded_checkpoint or trainer.state.fn != TrainerFn.FITTING:
            return
        with self._explain_errors("progress"):
            saved = self._loaded_checkpoint["loops"]["fit_loop"]
            trainer.fit_loop.load_state_dict(resumed_progress(saved, trainer.fit_loop.state_dict()))
        limit = trainer.max_epochs
        if limit is not None and limit != -1 and trainer.current_epoch > limit:
            raise ValueError(
                f"trainer.max_epochs must be at least {trainer.current_epoch}, the epochs that {self._ckpt_path} has "
                f"been trained, got {limit}"
            )

    def restore_optimizers_and_schedulers(self) -> None:
        """Restore optimizers and schedulers, after a check that their classes are the checkpoint's."""
        checkpoint = self._loaded_checkpoint
        if not checkpoint:
            return
        with self._explain_errors("optimizer's state"):
            kinds = [("optimizer", "optimizer_states"), ("lr_scheduler", "lr_schedulers")]
            averages = _find_callbacks(self.trainer, StochasticWeightAveraging)
            if any(callback._scheduler_state is not None for callback in averages):
                del kinds[1]  # The callback has replaced the run's schedule, and restores its own.
            for kind, key in kinds:
                if key not in checkpoint:
                    raise ValueError(f"it has no state of the {kind}, only weights (save_weights_only)")
                self._check_classes(kind, len(checkpoint[key]), checkpoint.get(CLASSES, {}).get(kind))
            for kind, key in kinds:
                for state, own in zip(checkpoint[key], self._own_parts(kind), strict=True):
                    _check_settings(kind, state, own)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True):
                _check_optimizer(state, optimizer)
            super().restore_optimizers_and_schedulers()

    def _own_parts(self, kind: str) -> list[Any]:
        if kind == "optimizer":
            return list(self.trainer.optimizers)
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def _check_classes(self, kind: str, number: int, saved: list[str] | None) -> None:
        names = [type(own).__name__ for own in self._own_parts(kind)]
        there = f"{number} of unknown classes" if saved is None else ", ".join(map(str, saved)) or "none"
        if number != len(names) or (saved is not None and list(saved) != names):
            raise ValueError(f"it was trained with model.{kind} {there}, this run has {', '.join(names) or 'none'}")

    @contextmanager
    def _explain_errors(self, name: str) -> Iterator[None]:
        """Turn any error that a part of a checkpoint causes into one line with the remedy."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if name == "weights" and isinstance(error, ValueError):
                raise  # Its message is complete.
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            path, fitting = self._ckpt_path, self.trainer.state.fn == TrainerFn.FITTING
            remedy = f"; --ramp.init_from {path} loads only the weights" if fitting else ""
            raise ValueError(f"{path} can't be resumed, its {name} does not fit this run: {reason}{remedy}") from error


def _drop_paths(states: dict[str, Any]) -> None:
    """Clear all file paths in a checkpoint: Lightning's ModelCheckpoint would remove or load those files."""
    for state in states.values():
        if isinstance(state, dict):
            for key in ("best_model_path", "last_model_path", "kth_best_model_path", "dirpath", "ckpt_path"):
                if key in state:
                    state[key] = ""
            if "best_k_models" in state:
                state["best_k_models"] = {}


def _find_callbacks(trainer: Trainer, kind: type[Callback]) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def _check_settings(kind: str, state: Mapping[str, Any], own: Any) -> None:
    """Refuse the state of another class, recognised by the names of its settings."""
    here, there = _setting_names(own.state_dict()), _setting_names(state)
    # Another version of torch adds or removes a setting; another class does both.
    if here - there and there - here:
        raise ValueError(
            f"it was trained with another model.{kind} than this run's {type(own).__name__}: that has "
            f"{', '.join(sorted(there - here))}, this has {', '.join(sorted(here - there))}"
        )


def _setting_names(state: Mapping[str, Any]) -> set[str]:
    groups = state.get("param_groups")
    return (set(state) if groups is None else {key for group in groups for key in group}) - SET_BY_SCHEDULERS


def _check_optimizer(state: Mapping[str, Any], optimizer: Any) -> None:
    """Refuse an optimizer's state that belongs to other parameters."""
    ours, theirs = ([len(g["params"]) for g in groups] for groups in (optimizer.param_groups, state["param_groups"]))
    if ours != theirs:
        raise ValueError(f"its optimizer has parameter groups of sizes {theirs}, this run's has {ours}")
    for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for name, value in theirs.items():
            if isinstance(ours.get(name), (int, float)) and not isinstance(value, (int, float, Tensor)):
                raise ValueError(f"its optimizer's {name} must be a number, got {value!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        shape = parameters[index].shape
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() == len(shape) and value.shape != shape and value.numel() != 1:
                raise ValueError(f"{name} of parameter {index} is {tuple(value.shape)}, the parameter {tuple(shape)}")
