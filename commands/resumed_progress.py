"""Counts of epochs, batches and steps in a checkpoint, rewritten so that training resumes exactly."""

from collections.abc import Mapping
from typing import Any

Counts = dict[str, Any]

LAST_BATCH = "reached_last_batch"
"""Key of the epoch loop's state; False if ``trainer.max_time`` or a callback ended the epoch before its last batch."""


def resumed_progress(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite the saved state of Lightning's fit loop so that it is either between two epochs or between two batches.

    Lightning's counts depend on the hook that saves. A checkpoint saved at an epoch's last batch counts as within that
    epoch: a run resumed from it counts one epoch too few, and its own checkpoints resume at the wrong batch. Therefore
    only the numbers of finished epochs, batches and optimizer steps are read.

    Args:
        saved: Loop state in the checkpoint.
        fresh: Loop state before the first batch; the result has the same keys.

    Raises:
        ValueError: If a count is missing or not a whole number of at least 0.
    """
    epochs = _read_count(saved, "epoch_progress", "current", "processed")
    batches = _read_count(saved, "epoch_loop.batch_progress", "current", "processed")
    ended = _read_count(saved, "epoch_loop.batch_progress", "current", "completed")
    within = _read_count(saved, "epoch_progress", "current", "started") > epochs or ended < batches
    if within and saved["epoch_loop.batch_progress"].get("is_last_batch") is True:
        epochs, within = epochs + 1, False
    if not within and batches and saved.get("epoch_loop.state_dict", {}).get(LAST_BATCH) is False:
        epochs, within = epochs - 1, True
    if not within:
        batches = 0
    state = dict(fresh)
    state["epoch_progress"] = _total_and_current(
        _equal_counts(epochs) | {"ready": epochs + bool(batches), "started": epochs + bool(batches)}
    )
    total = _read_count(saved, "epoch_loop.batch_progress", "total", "processed")
    state["epoch_loop.batch_progress"] = {
        "total": _equal_counts(total),
        "current": _equal_counts(batches),
        "is_last_batch": False,
    }
    key = "epoch_loop.automatic_optimization.optim_progress"
    steps = _read_count(saved, key, "optimizer", "step", "total", "completed")
    zeroed = _read_count(saved, key, "optimizer", "zero_grad", "total", "completed")
    state[key] = {
        "optimizer": {"step": _total_counts(steps), "zero_grad": _total_counts(zeroed, started=True)},
    }
    for name in ("epoch_loop.manual_optimization.optim_step_progress", "epoch_loop.scheduler_progress"):
        state[name] = _total_counts(_read_count(saved, name, "total", "completed"))
    logged = steps or _read_count(saved, "epoch_loop.state_dict", "_batches_that_stepped")
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": logged}
    state["state_dict"] = {"combined_loader": _loader_states(saved, batches)} if batches else {}
    return state


def _loader_states(saved: Mapping[str, Any], batches: int) -> list[Any]:
    """Return the data loaders' states, in which a batch that was fetched but not trained on is fetched again."""
    states = saved["state_dict"].get("combined_loader", [])
    if not isinstance(states, list):
        raise ValueError(f"the data loaders' states must be a list, got {type(states).__name__}")
    own = {"epoch", "done"}  # keys of TensorBatches' state
    return [state | {"done": batches} if isinstance(state, dict) and state.keys() == own else state for state in states]


def _read_count(saved: Mapping[str, Any], *keys: str) -> int:
    value: Any = saved
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"{'.'.join(keys)} is missing")
        value = value[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{'.'.join(keys)} must be a whole number of at least 0, got {value!r}")
    return value


def _equal_counts(number: int) -> Counts:
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)


def _total_and_current(counts: Counts) -> Counts:
    return {"total": counts, "current": dict(counts)}


def _total_counts(number: int, started: bool = False) -> Counts:
    names = ("ready", "started", "completed") if started else ("ready", "completed")
    return {"total": dict.fromkeys(names, number), "current": dict.fromkeys(names, 0)}
