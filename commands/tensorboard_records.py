"""TensorBoard records: hyper-parameters with results, and curves copied from the resumed run."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.summary import hparams

from rampart.files.weight_files import read_checkpoint

# Settings that change results, unlike those of paths, hardware and logging.
COMPARED = ("seed_everything", "data", "model", "ramp")
COMPARED_OF_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")


def collect_hyper_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change results, as a flat mapping: ``{"model/attack/steps": 5, ...}``.

    Args:
        config: Saved config of the run.
    """
    chosen: dict[str, Any] = {name: config.get(name) for name in COMPARED}
    trainer = config.get("trainer") or {}
    chosen["trainer"] = {name: trainer.get(name) for name in COMPARED_OF_TRAINER}
    return dict(_flatten(chosen, ""))


def log_results(logger: TensorBoardLogger, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write a run's hyper-parameters and last accuracies to TensorBoard's HPARAMS tab.

    The logger's own method is not used, because it would add a point to the accuracies' curves.
    """
    results = {name: float(value) for name, value in metrics.items() if name.startswith(("val/", "test/"))}
    for summary in hparams(collect_hyper_parameters(config), results):  # type: ignore[no-untyped-call]
        logger.experiment._get_file_writer().add_summary(summary)
    logger.experiment.flush()


def copy_curves(checkpoint: str, target: Path) -> None:
    """Copy the curves of a checkpoint's run, up to the checkpoint's step, so that a resumed run's curves have no gap.

    Args:
        checkpoint: File anywhere in its run's folder; that folder is not changed.
        target: Folder of the new run, before anything has been logged to it.
    """
    step = read_checkpoint(checkpoint).get("global_step")
    if not isinstance(step, int):  # The trainer refuses such a file with an explanation.
        return
    run = next((folder for folder in Path(checkpoint).resolve().parents if (folder / "config.yaml").is_file()), None)
    events = [event for event in _read_events(run) if _is_copied(event, step)] if run else []
    if not events:
        return
    writer = EventFileWriter(str(target))
    for event in events:
        writer.add_event(event)
    writer.close()


def rewind_curves(folder: Path, step: int) -> None:
    """Hide the points of a run's curves that were logged after the checkpoint from which it continues.

    No file is changed: a record in a new file tells TensorBoard to skip the points of this step and later ones.

    Args:
        folder: Folder of the run, before this process has logged anything to it.
        step: Optimizer steps of the checkpoint; 0 without one.
    """
    events = list(_read_events(folder))
    if not events:
        return
    writer = EventFileWriter(str(folder), filename_suffix=".rewind")
    writer.add_event(Event(step=step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
    # Earlier records of this kind hold copies of the same figures.
    for event in [event for event in events if event.step == step and _is_copied(event, step)][-1:]:
        writer.add_event(event)
    writer.close()


def _read_events(folder: Path) -> Iterator[Event]:
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(file)).Load():
            yield Event.FromString(record)


def _is_copied(event: Event, step: int) -> bool:
    """Return True for curves before the step, and for figures at it, which are drawn before the checkpoint is saved."""
    tags = [value.tag for value in event.summary.value]
    if not tags or any(tag.startswith(("_hparams_", "test/")) for tag in tags):
        return False
    return event.step < step or (event.step == step and tags == ["adversarial_images"])


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            path = name if key in ("class_path", "init_args") else f"{name}/{key}".lstrip("/")
            yield from _flatten(part, path)
    elif value is not None:
        yield name, value if isinstance(value, (bool, int, float, str)) else str(value)
