"""Section ``attack_step``: milliseconds per step of whole attacks, Rampart's by option and others', in turn."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accelerator_sections.attack_cases import (
    Attack,
    Case,
    build_case,
    list_executions,
    list_loops,
    list_peers,
    note_fallbacks,
    run_rampart,
)
from benchmarks.accelerator_sections.device import peak_memory, reset_peak_memory, time_call
from benchmarks.accelerator_sections.setting import Precision, Rows, Setting
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from benchmarks.attack_step import compare_images
from benchmarks.timing import Times
from rampart.kernels import Execution

Timed = Callable[[], float]
BASELINE = "baseline"
COMPILING = 45.0  # seconds that compiling may take; with less left, the compiled network is left out
START = 120.0  # longest wait for the baseline's process, in seconds
# Share of the time, relative to other cases.
COST = {("ResNet-18", 16): 2, ("ResNet-18", 128): 2, ("ResNet-18", 512): 6}


def measure(setting: Setting, rows: Rows) -> None:
    """Add one row per network, batch size, contestant and number of steps to the table ``attack_step``.

    On an accelerator, captured attacks are timed after all others: an error in a captured step ends the process.
    """
    with ExitStack() as stack:
        probe = None
        if setting.baseline is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                probe = stack.enter_context(BaselineProbe(setting.baseline, folder))
            except WorkerError as error:
                rows.leave_out(f"attack steps of the {BASELINE}", error)
        parts = [(True, True)] if setting.on_cpu else [(True, False), (False, True)]
        plan = [(kind, size, *part) for part in parts for kind, size in setting.size.cases]
        medians: dict[tuple[str, int], dict[str, float]] = {}
        while plan:
            costs = [COST.get((kind, size), 1) for kind, size, _, _ in plan]
            end = setting.seconds_left() * (1 - costs[0] / sum(costs))
            kind, size, others, captured = plan.pop(0)
            times = CaseTimes(build_case(kind, size, setting), setting, rows, medians.setdefault((kind, size), {}))
            if others:
                times.add_others(probe, end)
            if captured:
                times.add_rampart(True, end)
            times.measure(end)


class BaselineProbe:
    """Attacks with the baseline's code in a process of its checkout. As a context, it ends the process.

    Args:
        checkout: Folder of the baseline's source.
        folder: Empty folder for files.

    Raises:
        WorkerError: If the process fails.
    """

    def __init__(self, checkout: str, folder: Path) -> None:
        self._folder = folder
        self._worker = Worker(["-m", "rampart_probe"], Path(checkout).resolve(), folder / "log.txt")
        self._worker.receive(START)

    def load(self, case: Case) -> None:
        """Load a network and images.

        Raises:
            WorkerError: If the process fails; so do all methods.
        """
        self._case, file = case, self._folder / "case.pt"
        tensors: dict[str, Any] = {
            "kind": case.kind,
            "device": case.images.device.type,
            "state_dict": {name: tensor.cpu() for name, tensor in case.ours.state_dict().items()},
            "images": case.images.cpu(),
            "labels": case.labels.cpu(),
        }
        torch.save(tensors, file)
        self._worker.ask(START, case=str(file))

    def run(self, precision: Precision, steps: int, save: Path | None = None) -> float:
        """Attack once, and return the seconds.

        Args:
            precision: Precision of the attack.
            steps: Number of gradient steps.
            save: File for the adversarial images.
        """
        eps, step_size = self._case.eps, self._case.step_size
        file = None if save is None else str(save)
        reply = self._worker.ask(START, steps=steps, step_size=step_size, eps=eps, precision=precision, save=file)
        return float(reply["seconds"])

    def images(self, steps: int) -> Tensor:
        """Return adversarial images in float32, on the CPU."""
        file = self._folder / "adv.pt"
        self.run("float32", steps, file)
        found: Tensor = torch.load(file, weights_only=True)
        return found

    def __enter__(self) -> "BaselineProbe":
        return self

    def __exit__(self, *error: Any) -> None:
        self._worker.__exit__(*error)


class CaseTimes:
    """Times of contestants on one network and batch size.

    Args:
        case: Network and images.
        setting: The section's settings.
        rows: Rows of the section.
        medians: Median seconds of contestants that were timed earlier on the same case; this object adds its own.
    """

    def __init__(self, case: Case, setting: Setting, rows: Rows, medians: dict[str, float]) -> None:
        self._case, self._setting, self._rows, self._medians = case, setting, rows, medians
        self._where = f"{case.kind}, batch {len(case.labels)}"
        self._first: dict[tuple[str, int], float] = {}
        self._expected: dict[tuple[str, int], float] = {}
        self._memory: dict[tuple[str, int], float | None] = {}
        self._images: dict[tuple[str, int], Tensor | None] = {}
        self._timed: dict[tuple[str, int], Timed] = {}

    def add_others(self, probe: BaselineProbe | None, end: float) -> None:
        """Warm up the paper's loop, the baseline, Rampart without capture, and libraries.

        Args:
            probe: The baseline's process; None without a baseline.
            end: Seconds of the section that must be left when this case is timed.
        """
        most = self._setting.size.steps[0]
        for name, attack in list_loops(self._case, self._setting).items():
            self._add(name, attack, most)
        if probe:
            self._add_baseline(probe)
        self.add_rampart(False, end)
        for name, attack in list_peers(self._case, self._setting, self._rows).items():
            if self._setting.seconds_left() - end > self._setting.size.rounds[0] * sum(self._expected.values()):
                self._add(name, attack, most)
            else:
                self._rows.leave_out(f"{name}, {self._where}", "no time left")

    def add_rampart(self, capture: bool, end: float) -> None:
        """Warm up Rampart's attack, with or without capture, in all precisions; and compiled, if there is time.

        Args:
            capture: Capture the steps.
            end: Seconds of the section that must be left when this case is timed.
        """
        compiled = capture and (self._case.kind, len(self._case.labels)) in self._setting.size.compiled
        for name, options in list_executions(self._setting, capture, compiled).items():
            if options.compile and self._setting.seconds_left() - end < COMPILING:
                self._rows.leave_out(f"{name}, {self._where}", "no time left to compile")
                continue
            for steps in self._setting.size.steps:
                self._add(name, partial(run_rampart, self._case, options), steps)

    def measure(self, end: float) -> None:
        """Time all contestants in turn, and add a row for each.

        Args:
            end: Seconds of the section that must be left afterwards.
        """
        times = self._time_in_turn(self._setting.seconds_left() - end)
        self._medians.update({key: times.median(key) for key in times.seconds})
        for name, steps in self._timed:
            key, precision = f"{name}/{steps}", name.rpartition(", ")[2]
            papers = self._ratio(times, f"paper's loop, float32/{self._setting.size.steps[0]}", key)
            self._rows.add(
                "attack_step",
                network=self._case.kind,
                batch_size=len(self._case.labels),
                contestant=name,
                steps=steps,
                rounds=len(times.seconds[key]),
                ms_per_step=1000 * times.median(key) / steps,
                warm_up_seconds=self._first[name, steps] + self._expected[name, steps],
                peak_gib=self._memory.get((name, steps)),
                speed_over_papers_loop=papers and papers * steps / self._setting.size.steps[0],
                speed_over_baseline=self._ratio(times, f"{BASELINE}, {precision}/{steps}", key),
                **self._compare(name, steps, precision),
            )

    def _add(self, name: str, attack: Attack, steps: int) -> None:
        """Run once or twice, keep the images, and add a contestant; leave it out if it fails."""
        device, key = self._setting.device, (name, steps)
        reset_peak_memory(device)
        try:
            with note_fallbacks(f"{name}, {self._where}", self._rows):
                self._first[key] = time_call(lambda: self._images.__setitem__(key, attack(steps)), device)
                self._expected[key] = time_call(lambda: attack(steps), device)
        except Exception as error:  # one contestant's failure must not end the others
            self._rows.leave_out(f"{name}, {self._where}", error)
            return
        self._memory[key] = peak_memory(device)
        self._timed[key] = partial(time_call, partial(attack, steps), device)

    def _add_baseline(self, probe: BaselineProbe) -> None:
        found: dict[tuple[str, int], Timed] = {}
        try:
            probe.load(self._case)
            most = self._setting.size.steps[0]
            self._images[f"{BASELINE}, float32", most] = probe.images(most)
            for precision in self._setting.size.precisions:
                for steps in self._setting.size.steps:
                    key = f"{BASELINE}, {precision}", steps
                    self._first[key], self._expected[key] = probe.run(precision, steps), probe.run(precision, steps)
                    found[key] = partial(probe.run, precision, steps)
        except WorkerError as error:
            self._rows.leave_out(f"{BASELINE}, {self._where}", error)
            return
        self._timed |= found

    def _time_in_turn(self, seconds: float) -> Times:
        least, largest = self._setting.size.rounds
        expected = sum(self._expected[key] for key in self._timed) or 1.0
        rounds = max(least, min(largest, int(0.9 * seconds / expected)))
        return time_calls({f"{name}/{steps}": timed for (name, steps), timed in self._timed.items()}, rounds, seconds)

    def _ratio(self, times: Times, name: str, other: str) -> float | None:
        """Return the ratio of two times, from the same rounds if both were timed now."""
        if name in times.seconds:
            return times.ratio(name, other)
        return self._medians[name] / self._medians[other] if name in self._medians else None

    def _compare(self, name: str, steps: int, precision: str) -> dict[str, float]:
        """Compare float32 images of the same algorithm with those of Rampart's eager attack."""
        adv, most = self._images.get((name, steps)), self._setting.size.steps[0]
        if adv is None or steps != most or precision != "float32" or "APGD" in name:
            return {}
        key = "Rampart, eager, float32", most
        if key not in self._images:
            self._images[key] = run_rampart(self._case, Execution(capture=False, attack_precision="float32"), most)
        eager = self._images[key]
        assert eager is not None
        return compare_images(eager.cpu(), adv.cpu()) or {}


def time_calls(runs: dict[str, Timed], rounds: int, seconds: float) -> Times:
    """Time contestants in turn, in one round or more, until the time is over."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    start = time.monotonic()
    for done in range(rounds):
        if done and time.monotonic() - start > seconds:
            break
        for name, timed in runs.items():
            found[name].append(timed())
    return Times(found)
