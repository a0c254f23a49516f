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
    list_others,
    run_rampart,
)
from benchmarks.accelerator_sections.device import peak_memory, reset_peak_memory, time_call
from benchmarks.accelerator_sections.setting import Precision, Rows, Setting
from benchmarks.accelerator_sections.worker import Worker, WorkerError
from benchmarks.attack_step import compare_images
from benchmarks.timing import Times

Timed = Callable[[], float]
BASELINE = "baseline"
COMPILING = 45.0  # seconds that compiling may take; with less left, the compiled network is left out


def measure(setting: Setting, rows: Rows) -> None:
    """Add one row per network, batch size, contestant and number of steps to the table ``attack_step``."""
    for number, (kind, batch_size) in enumerate(setting.size.cases):
        end = setting.seconds_left() * (1 - 1 / (len(setting.size.cases) - number))
        case = build_case(kind, batch_size, setting)
        with ExitStack() as stack:
            probe = None
            if setting.baseline is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                try:
                    probe = stack.enter_context(BaselineProbe(case, setting, folder))
                except WorkerError as error:
                    rows.leave_out(f"{BASELINE}, {kind}, batch {batch_size}", error)
            CaseTimes(case, setting, rows, probe).measure(end)


class BaselineProbe:
    """Attacks with the baseline's code in a process of its checkout. As a context, it ends the process.

    Args:
        case: Network and images.
        setting: The section's settings.
        folder: Empty folder for files.

    Raises:
        WorkerError: If the process fails.
    """

    def __init__(self, case: Case, setting: Setting, folder: Path) -> None:
        assert setting.baseline is not None
        self._case, self._folder, file = case, folder, folder / "case.pt"
        tensors: dict[str, Any] = {
            "kind": case.kind,
            "device": case.images.device.type,
            "state_dict": {name: tensor.cpu() for name, tensor in case.ours.state_dict().items()},
            "images": case.images.cpu(),
            "labels": case.labels.cpu(),
        }
        torch.save(tensors, file)
        self._worker = Worker(["-m", "rampart_probe"], Path(setting.baseline).resolve(), folder / "log.txt")
        self._worker.ask(120, case=str(file))

    def run(self, precision: Precision, steps: int, save: Path | None = None) -> float:
        """Attack once, and return the seconds.

        Args:
            precision: Precision of the attack.
            steps: Number of gradient steps.
            save: File for the adversarial images.
        """
        eps, step_size = self._case.eps, self._case.step_size
        file = None if save is None else str(save)
        reply = self._worker.ask(120, steps=steps, step_size=step_size, eps=eps, precision=precision, save=file)
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
    """Times of all contestants on one network and batch size.

    Args:
        case: Network and images.
        setting: The section's settings.
        rows: Rows of the section.
        probe: The baseline's process; None without a baseline.
    """

    def __init__(self, case: Case, setting: Setting, rows: Rows, probe: BaselineProbe | None) -> None:
        self._case, self._setting, self._rows, self._probe = case, setting, rows, probe
        self._first: dict[tuple[str, int], float] = {}
        self._second: dict[tuple[str, int], float] = {}
        self._memory: dict[tuple[str, int], float | None] = {}
        self._images: dict[tuple[str, int], Tensor | None] = {}
        self._timed: dict[tuple[str, int], Timed] = {}

    def measure(self, end: float) -> None:
        """Warm up, time in turn, and add rows.

        Args:
            end: Seconds of the section that must be left afterwards.
        """
        most, *fewer = self._setting.size.steps
        for name, attack in list_others(self._case, self._setting, self._rows).items():
            self._add(name, attack, most)
        for precision in self._setting.size.precisions if self._probe else ():
            self._add_baseline(precision, [most, *fewer])
        key = (self._case.kind, len(self._case.labels))
        for name, options in list_executions(self._setting, key in self._setting.size.compiled).items():
            if options.compile and self._setting.seconds_left() - end < COMPILING:
                self._rows.leave_out(f"{name}, {self._case.kind}, batch {key[1]}", "no time left to compile")
                continue
            for steps in [most, *fewer]:
                self._add(name, partial(run_rampart, self._case, options), steps)
        self._add_rows(self._time_in_turn(self._setting.seconds_left() - end))

    def _add(self, name: str, attack: Attack, steps: int) -> None:
        """Run twice, keep the images, and add a contestant; leave it out if it fails."""
        device, key = self._setting.device, (name, steps)
        reset_peak_memory(device)
        try:
            self._first[key] = time_call(lambda: self._images.__setitem__(key, attack(steps)), device)
            self._second[key] = time_call(lambda: attack(steps), device)
        except Exception as error:  # one contestant's failure must not end the others
            self._rows.leave_out(f"{name}, {self._case.kind}, batch {len(self._case.labels)}", error)
            return
        self._memory[key] = peak_memory(device)
        self._timed[key] = partial(time_call, partial(attack, steps), device)

    def _add_baseline(self, precision: Precision, all_steps: list[int]) -> None:
        assert self._probe is not None
        name = f"{BASELINE}, {precision}"
        try:
            if precision == "float32":
                self._images[name, all_steps[0]] = self._probe.images(all_steps[0])
            for steps in all_steps:
                self._first[name, steps] = self._probe.run(precision, steps)
                self._second[name, steps] = self._probe.run(precision, steps)
                self._timed[name, steps] = partial(self._probe.run, precision, steps)
        except WorkerError as error:
            self._rows.leave_out(f"{name}, {self._case.kind}", error)
            for steps in all_steps:
                self._timed.pop((name, steps), None)

    def _time_in_turn(self, seconds: float) -> Times:
        least, largest = self._setting.size.rounds
        expected = sum(self._second[key] for key in self._timed) or 1.0
        rounds = max(least, min(largest, int(0.9 * seconds / expected)))
        found: dict[str, list[float]] = {f"{name}/{steps}": [] for name, steps in self._timed}
        start = time.monotonic()
        for done in range(rounds):
            if done and time.monotonic() - start > seconds:
                break
            for (name, steps), timed in self._timed.items():
                found[f"{name}/{steps}"].append(timed())
        return Times(found)

    def _add_rows(self, times: Times) -> None:
        most = self._setting.size.steps[0]
        papers = f"paper's loop, float32/{most}"
        for name, steps in self._timed:
            key, precision = f"{name}/{steps}", name.rpartition(", ")[2]
            same = f"{BASELINE}, {precision}/{steps}"
            over_paper = times.ratio(papers, key) * steps / most if papers in times.seconds else None
            row: dict[str, Any] = {
                "network": self._case.kind,
                "batch_size": len(self._case.labels),
                "contestant": name,
                "steps": steps,
                "rounds": len(times.seconds[key]),
                "ms_per_step": 1000 * times.median(key) / steps,
                "first_call_seconds": self._first[name, steps],
                "peak_gib": self._memory.get((name, steps)),
                "speed_over_papers_loop": over_paper,
                "speed_over_baseline": times.ratio(same, key) if same in times.seconds else None,
            }
            self._rows.add("attack_step", **row, **self._compare(name, steps, precision))

    def _compare(self, name: str, steps: int, precision: str) -> dict[str, float]:
        """Compare float32 images of the same algorithm with those of Rampart's eager attack."""
        eager, adv = self._images.get(("Rampart, eager, float32", steps)), self._images.get((name, steps))
        if eager is None or adv is None or precision != "float32" or "APGD" in name:
            return {}
        return compare_images(eager.cpu(), adv.cpu()) or {}
