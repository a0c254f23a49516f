"""Trainer settings: validation of a config's settings, and the defaults of every run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.model_helpers import is_overridden

from callbacks import RampartProgressBar
from lightning_modules.layer_sync import LayerSync

# Lightning refuses a barebones trainer with any of these settings.
BARE = (
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
)

SHARDED = "attacks need the whole network on every device"
RELAUNCHED = "its processes end after fit, before the test"
REFUSED = {
    "fsdp": SHARDED,
    "deepspeed": SHARDED,
    "modelparallel": SHARDED,
    "spawn": RELAUNCHED,
    "fork": RELAUNCHED,
    "notebook": RELAUNCHED,
}

LEAST = {
    "fit": ("max_epochs", "max_steps", "max_time", "limit_train_batches"),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}

# Lightning divides by the first three, and does not clip gradients for a negative fourth.
RANGES = (
    ("accumulate_grad_batches", "at least 1", 1),
    ("check_val_every_n_epoch", "at least 1", 1),
    ("val_check_interval", "above 0", 1e-9),
    ("gradient_clip_val", "at least 0", 0),
)


def complete_settings(trainer: Namespace, folder: Path, own: list[Callback]) -> dict[str, Any]:
    """Add Rampart's callbacks, logger and folders to the trainer settings of a config.

    A progress bar or logger in the config replaces Rampart's, and nothing that the config turns off is added.

    Args:
        trainer: Section ``trainer`` of the config, with instantiated objects.
        folder: Folder of the run.
        own: Rampart's callbacks of every run.

    Returns:
        Keyword arguments for the trainer.
    """
    settings, bare = dict(trainer.items()), trainer.barebones
    if bare:
        settings |= dict.fromkeys(BARE)
    checkpoints, bars = _enabled(trainer)
    given = as_list(trainer.callbacks)
    callbacks = [callback for callback in [*own, *given] if checkpoints or not isinstance(callback, Checkpoint)]
    if bars and not any(isinstance(callback, ProgressBar) for callback in given):
        callbacks.append(RampartProgressBar())
    # Their hooks come first, so that the figures at the end of training are those of the average.
    callbacks.sort(key=lambda callback: not isinstance(callback, WeightAveraging))
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")
    if not bare and not settings["fast_dev_run"] and settings["logger"] in (None, True):
        settings["logger"] = TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
        )
    if settings["sync_batchnorm"]:  # Lightning's own plugin refuses CPUs, and bounds can't pass through its layers.
        settings["plugins"] = [*as_list(settings["plugins"]), LayerSync()]
    if settings["default_root_dir"] is None:
        settings["default_root_dir"] = folder
    return settings | {"callbacks": callbacks}


@contextmanager
def name_settings_in_errors(trainer: Namespace) -> Iterator[None]:
    """Add the values of the settings that an error of Lightning's trainer mentions to its message.

    Raises:
        ValueError: In place of an error that mentions a setting.
    """
    try:
        yield
    except (ImportError, ValueError, TypeError, MisconfigurationException) as error:
        text = str(error)
        if text.startswith("No supported gpu backend"):
            text = "no GPU that torch can use was found; add --config configs/overlays/cpu.yaml last to run on the CPU"
        mentioned = [
            f"trainer.{name} {value!r}"
            for name, value in trainer.items()
            if value is not None
            and (re.search(rf"\b{name}\b", text) or (isinstance(value, str) and _mentions(value, text)))
        ]
        if not mentioned:
            raise
        raise ValueError(f"{text} (given: {', '.join(mentioned)})") from error


def check_settings(subcommand: str, trainer: Namespace, test_after_fit: bool) -> None:
    """Refuse settings that contradict one another, can't work, or leave nothing to do.

    Raises:
        ValueError: If the strategy can't train under attack, a given callback is turned off by another setting, or the
            settings leave no epoch, step or batch for the command.
    """
    _check_strategy(trainer.strategy)
    _check_callbacks(as_list(trainer.callbacks), *_enabled(trainer))
    names = LEAST.get(subcommand, ()) + (LEAST["test"] if subcommand == "fit" and test_after_fit else ())
    for name in names:
        value = trainer[name]
        if isinstance(value, (int, float)) and value == 0 and not trainer.fast_dev_run:
            hint = ": --test_after_fit false leaves out the test" if name == "limit_test_batches" else ""
            raise ValueError(f"trainer.{name} must be above 0 for {subcommand}, got {value}{hint}")
    for name, allowed, lowest in RANGES:
        value = trainer[name]
        if isinstance(value, (int, float)) and value < lowest:
            raise ValueError(f"trainer.{name} must be {allowed}, got {value}")


def check_loaders(subcommand: str, data: LightningDataModule | None) -> None:
    """Refuse a data module without the loader that a command needs, before anything is computed.

    Raises:
        ValueError: If the loader is missing.
    """
    loaders = {"fit": "train", "validate": "val", "predict": "predict", "test": "test", "evaluate": "test"}
    name = f"{loaders.get(subcommand)}_dataloader"
    if data is not None and subcommand in loaders and not is_overridden(name, data):
        raise ValueError(f"data {type(data).__name__} has no {name}(), which {subcommand} needs: add one")


def check_seed(seed: bool | int) -> None:
    """Refuse a seed outside the range of NumPy's generator, which is seeded too.

    Raises:
        ValueError: If the seed is out of range.
    """
    if not 0 <= int(seed) < 2**32:
        raise ValueError(f"--seed_everything must be from 0 to {2**32 - 1} or false, got {seed}")


def check_images(batches: float, kind: str) -> None:
    """Refuse a command whose data loaders yielded nothing.

    Raises:
        ValueError: If there were no batches.
    """
    if batches == 0:
        raise ValueError(
            f"the data module has no {kind}: nothing was done (an empty set, or fewer than one full batch)"
        )


def as_list(value: Any) -> list[Any]:
    """Return a list of one value, several values or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _mentions(value: str, text: str) -> bool:
    whole = rf"(?<![a-z0-9]){re.escape(value)}(?![a-z0-9])"
    return value != "auto" and re.search(whole, text, re.IGNORECASE) is not None


def _enabled(trainer: Namespace) -> tuple[bool, bool]:
    """Return two flags: True if the run has checkpoints, and True if it has a progress bar."""
    on = not trainer.barebones
    return on and trainer.enable_checkpointing is not False, on and trainer.enable_progress_bar is not False


def _check_strategy(strategy: Any) -> None:
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    started = getattr(strategy, "_start_method", "popen")  # attribute of Lightning's DDPStrategy
    kind = f"{name}_{started}".lower().replace("_", "")
    for word, reason in REFUSED.items():
        if word in kind:
            got = f"{name} with start_method {started}" if started != "popen" else name
            raise ValueError(f"trainer.strategy {got} is not possible: {reason}; use --trainer.strategy ddp")


def _check_callbacks(given: list[Any], checkpoints: bool, bars: bool) -> None:
    found = [callback for callback in given if isinstance(callback, ProgressBar)]
    if len(found) > 1:
        names = ", ".join(type(bar).__name__ for bar in found)
        raise ValueError(f"trainer.callbacks must hold at most one progress bar, got {names}")
    for allowed, kind, option in (
        (checkpoints, Checkpoint, "enable_checkpointing"),
        (bars, ProgressBar, "enable_progress_bar"),
    ):
        off = [type(callback).__name__ for callback in given if isinstance(callback, kind)]
        if off and not allowed:
            raise ValueError(
                f"trainer.callbacks holds {off[0]}, which trainer.{option} false or trainer.barebones true turns off: "
                "leave out one of the two"
            )
