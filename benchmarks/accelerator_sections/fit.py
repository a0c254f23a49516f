"""Section ``fit``: updates per second of `cli.py fit`, host waits and memory, with the baseline's in turn."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.accelerator_sections.attack_cases import FALLBACKS
from benchmarks.accelerator_sections.command_line import BASELINE, OURS, build_fit, check_images, list_checkouts
from benchmarks.accelerator_sections.setting import Recipe, Rows, Setting
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from benchmarks.timing import Times

WARM_UP = 2  # turns before the timed ones: recording, compiling, caches
WATCHED = 5  # updates that are watched for host waits
START = 120.0  # seconds that a process may take to start


def measure(setting: Setting, rows: Rows) -> None:
    """Add one row per recipe to the table ``fit``."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started: dict[str, dict[str, Worker]] = {}
        # Processes that wait cost an accelerator memory alone, and starting takes longer than measuring.
        for recipe in () if setting.on_cpu else setting.size.recipes:
            started[recipe.name] = start(recipe, setting, rows, Path(name), stack)
        for number, recipe in enumerate(setting.size.recipes):
            seconds = setting.seconds_left() / (len(setting.size.recipes) - number)
            with ExitStack() as own:
                workers = started.get(recipe.name)
                if workers is None:
                    workers = start(recipe, setting, rows, Path(name), own)
                try:
                    measure_recipe(recipe, setting, rows, seconds, workers)
                except WorkerError as error:
                    rows.leave_out(f"fit, {recipe.name}", error)
                finally:
                    for worker in workers.values():
                        worker.stop()


def start(recipe: Recipe, setting: Setting, rows: Rows, folder: Path, stack: ExitStack) -> dict[str, Worker]:
    """Start a training in every checkout; it waits for requests before its first update."""
    workers: dict[str, Worker] = {}
    folder = folder / str(setting.size.recipes.index(recipe))
    folder.mkdir()
    try:
        if recipe.config:
            check_images(setting)
        for name, checkout in list_checkouts(setting).items():
            arguments = build_fit(recipe, setting, checkout, folder / name)
            workers[name] = stack.enter_context(Worker(arguments, checkout, folder / f"{name}.txt"))
    except WorkerError as error:
        rows.leave_out(f"fit, {recipe.name}", error)
    return workers


def measure_recipe(recipe: Recipe, setting: Setting, rows: Rows, seconds: float, workers: dict[str, Worker]) -> None:
    """Train in all checkouts in turn, and add a row.

    Raises:
        WorkerError: If this checkout's training fails.
    """
    begun, first, replies = time.monotonic(), {}, {}
    workers = dict(workers)
    for name in list(workers):
        try:
            workers[name].receive(START)
            first[name] = workers[name].ask(START, updates=WARM_UP * recipe.updates)["seconds"]
        except WorkerError as error:
            del workers[name]
            if name == OURS:
                raise
            rows.leave_out(f"{name}, fit, {recipe.name}", error)
    if not workers:
        return
    found: dict[str, list[float]] = {name: [] for name in workers}
    for done in range(setting.size.rounds[1]):
        if done and time.monotonic() - begun > 0.9 * seconds:
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
    for line in workers[OURS].log.read_text(errors="replace").splitlines():
        if any(word in line for word in FALLBACKS) and "warn" in line.lower():
            rows.leave_out(f"capture or compilation of fit, {recipe.name}", line)


def find_waits(worker: Worker, setting: Setting) -> dict[str, Any]:
    """Return the places at which updates wait for the device, with the number of waits at each."""
    if setting.device != "cuda":
        return {"host_waits": None}
    places = worker.ask(START, updates=WATCHED, watch_waits=True)["waits"]
    shown = {"/".join(Path(place).parts[-3:]): places.count(place) for place in dict.fromkeys(places)}
    return {"host_waits": len(places), "watched_updates": WATCHED, "host_wait_places": shown}
