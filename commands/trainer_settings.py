"""The trainer's settings: what a config says, completed by what every run of Rampart has."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.model_helpers import is_overridden

from callbacks import RampartProgressBar

# Lightning refuses a barebones trainer that was told anything of these.
BARE = (
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
)

SHARDED = "attacks need the whole network on every device"
RELAUNCHED = "its processes end with fit, before the test"
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

# Lightning divides by the first three, and takes a negative one of the fourth for none.
RANGES = (
    ("accumulate_grad_batches", "at least 1", 1),
    ("check_val_every_n_epoch", "at least 1", 1),
    ("val_check_interval", "above 0", 1e-9),
    ("gradient_clip_val", "at least 0", 0),
)


def complete_settings(trainer: Namespace, folder: Path, own: list[Callback]) -> dict[str, Any]:
    """Complete a config's trainer settings by Rampart's callbacks, logger and folders.

    What the user has set is left: their progress bar and logger take the place of Rampart's, and what is turned off
    stays off.

    Args:
        trainer: The config's ``trainer``, with its objects made.
        folder: The run's.
        own: Rampart's callbacks.

    Returns:
        Keyword arguments of the trainer.
    """
    settings, bare = dict(trainer.items()), trainer.barebones
    if bare:
        settings |= dict.fromkeys(BARE)
    checkpoints, bars = _left_on(trainer)
    given = as_list(trainer.callbacks)
    callbacks = [callback for callback in [*own, *given] if checkpoints or not isinstance(callback, Checkpoint)]
    if bars and not any(isinstance(callback, ProgressBar) for callback in given):
        callbacks.append(RampartProgressBar())
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")
    if not bare and not settings["fast_dev_run"] and settings["logger"] in (None, True):
        settings["logger"] = TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
        )
    if settings["default_root_dir"] is None:
        settings["default_root_dir"] = folder
    return settings | {"callbacks": callbacks}


@contextmanager
def naming_settings(trainer: Namespace) -> Iterator[None]:
    """Add to an error of Lightning's trainer the settings that its message speaks of, with their values.

    Raises:
        ValueError: In place of the error, if it speaks of a setting.
    """
    try:
        yield
    except (ImportError, ValueError, TypeError, MisconfigurationException) as error:
        text = str(error)
        blamed = [
            f"trainer.{name} {value!r}"
            for name, value in trainer.items()
            if value is not None
            and (re.search(rf"\b{name}\b", text) or (isinstance(value, str) and _speaks_of(value, text)))
        ]
        if not blamed:
            raise
        raise ValueError(f"{text} (given: {', '.join(blamed)})") from error


def check_settings(subcommand: str, trainer: Namespace, test_after_fit: bool) -> None:
    """Refuse settings that contradict one another, can't work, or leave nothing to do.

    Raises:
        ValueError: If the strategy can't train under attack, a callback is given that a flag turns off, or no epoch,
            step or batch is left of what the command is there for.
    """
    _check_strategy(trainer.strategy)
    _check_callbacks(as_list(trainer.callbacks), *_left_on(trainer))
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
    """Refuse a data module without the loader that a command asks for, before anything is computed.

    Raises:
        ValueError: If the loader is missing.
    """
    loaders = {"fit": "train", "validate": "val", "predict": "predict", "test": "test", "evaluate": "test"}
    name = f"{loaders.get(subcommand)}_dataloader"
    if data is not None and subcommand in loaders and not is_overridden(name, data):
        raise ValueError(f"data {type(data).__name__} has no {name}(), which {subcommand} needs: add one")


def check_seed(seed: bool | int) -> None:
    """Refuse a seed that NumPy's generator, which is seeded too, can't take.

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
    """Return one thing, several or none as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _speaks_of(value: str, text: str) -> bool:
    whole = rf"(?<![a-z0-9]){re.escape(value)}(?![a-z0-9])"
    return value != "auto" and re.search(whole, text, re.IGNORECASE) is not None


def _left_on(trainer: Namespace) -> tuple[bool, bool]:
    """Return whether the run has checkpoints and a progress bar."""
    on = not trainer.barebones
    return on and trainer.enable_checkpointing is not False, on and trainer.enable_progress_bar is not False


def _check_strategy(strategy: Any) -> None:
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    started = getattr(strategy, "_start_method", "popen")  # of Lightning's DDPStrategy
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
