"""Section ``fit``: updates per second of `cli.py fit`, host waits and memory, with the baseline's in turn."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.accelerator_sections.command_line import BASELINE, OURS, build_fit, find_missing, list_checkouts
from benchmarks.accelerator_sections.setting import Recipe, Rows, Setting
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from benchmarks.timing import Times

WARM_UP = 2  # turns before the timed ones: recording, compiling, caches
WATCHED = 5  # updates that are watched for host waits
START = 120.0  # seconds that a process may take to start


def measure(setting: Setting, rows: Rows) -> None:
    """Add one row per recipe to the table ``fit``."""
    recipes = setting.size.recipes
    for number, recipe in enumerate(recipes):
        seconds = setting.seconds_left() / (len(recipes) - number)
        try:
            if reason := find_missing(recipe, setting):
                raise WorkerError(reason)
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                measure_recipe(recipe, setting, rows, seconds, Path(folder), stack)
        except WorkerError as error:
            rows.leave_out(f"fit, {recipe.name}", error)


def measure_recipe(
    recipe: Recipe, setting: Setting, rows: Rows, seconds: float, folder: Path, stack: ExitStack
) -> None:
    """Train in all checkouts in turn, and add a row.

    Raises:
        WorkerError: If this checkout's training fails.
    """
    start, workers, first, replies = time.monotonic(), {}, {}, {}
    for name, checkout in list_checkouts(setting).items():
        arguments = build_fit(recipe, setting, checkout, folder / name)
        workers[name] = stack.enter_context(Worker(arguments, checkout, folder / f"{name}.txt"))
    for name in list(workers):
        try:
            workers[name].receive(START)
            begun = time.monotonic()
            for _ in range(WARM_UP):
                workers[name].ask(START, updates=recipe.updates)
            first[name] = time.monotonic() - begun
        except WorkerError as error:
            del workers[name]
            if name == OURS:
                raise
            rows.leave_out(f"{name}, fit, {recipe.name}", error)
    found: dict[str, list[float]] = {name: [] for name in workers}
    least, largest = setting.size.rounds
    for done in range(largest):
        if done >= least and time.monotonic() - start > 0.9 * seconds:
            break
        for name, worker in workers.items():
            replies[name] = worker.ask(START, updates=recipe.updates)
            found[name].append(replies[name]["seconds"])
    times = Times(found)
    row: dict[str, Any] = {"recipe": recipe.name, "updates_per_turn": recipe.updates, "rounds": len(found[OURS])}
    for name in workers:
        row[f"{name}_updates_per_second"] = recipe.updates / times.median(name)
        row[f"{name}_warm_up_seconds"] = first[name]
        row[f"{name}_peak_gib"] = replies[name]["memory"]
    if BASELINE in workers:
        row["speed_over_baseline"] = times.ratio(BASELINE, OURS)
    rows.add("fit", **row, **find_waits(workers[OURS], setting))


def find_waits(worker: Worker, setting: Setting) -> dict[str, Any]:
    """Return the places at which updates wait for the device, with the number of waits at each."""
    if setting.device != "cuda":
        return {"host_waits": None}
    places = worker.ask(START, updates=WATCHED, watch_waits=True)["waits"]
    shown = {"/".join(Path(place).parts[-3:]): places.count(place) for place in dict.fromkeys(places)}
    return {"host_waits": len(places), "watched_updates": WATCHED, "host_wait_places": shown}
