"""Run sections one after the other, each in its own process, until a clock stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accelerator_sections.setting import ROOT, Row
from benchmarks.accelerator_sections.worker import last_line

# Share of the time by section; those that are not measured leave theirs to the others.
WEIGHTS = {"agreement": 30, "attack_step": 110, "fit": 75, "evaluation": 120, "two_ranks": 25, "trained": 300}
GRACE = 5.0  # seconds after a section's time until it is killed


@dataclass(frozen=True)
class Section:
    """A section's started process."""

    name: str
    process: "subprocess.Popen[str]"
    rows: Path
    log: Path

    def measure(self, settings: dict[str, Any], seconds: float) -> list[Row]:
        """Measure with these settings; return the rows, also if the process fails or is stopped by the clock."""
        assert self.process.stdin is not None
        start = time.monotonic()
        problem = ""
        try:
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(settings | {"seconds": seconds}) + "\n")
                self.process.stdin.close()
            if self.process.wait(seconds + GRACE):
                problem = last_line(self.log)
        except subprocess.TimeoutExpired:
            problem = f"stopped by the clock after {seconds + GRACE:.0f} s"
        rows: list[Row] = json.loads(self.rows.read_text()) if self.rows.exists() else []
        if problem:
            rows.append({"table": "left out", "what": f"the rest of section {self.name}", "why": problem})
        rows.append({"table": "sections", "name": self.name, "seconds": round(time.monotonic() - start, 1)})
        return [{"section": self.name} | row for row in rows]


@contextmanager
def start_section(name: str, folder: Path) -> Iterator[Section]:
    """Start a section's process, which imports and then waits; end it and all that it started afterwards."""
    rows, log = folder / f"{name}.json", folder / f"{name}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "benchmarks.accelerator_sections.process", name, str(rows)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
    try:
        yield Section(name, process, rows, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_sections(
    names: list[str], settings: dict[str, Any], budget: float, folder: Path, ahead: bool
) -> Iterator[list[Row]]:
    """Run sections and yield the rows of each.

    Args:
        names: Names of the sections, in order.
        settings: Settings of all sections, without their time.
        budget: Seconds that all sections share.
        folder: Folder for files.
        ahead: Start each process while the one before is measured, so that imports cost no time.
    """
    end = time.monotonic() + budget
    with start_section(names[0], folder) as section:
        yield from _run(section, names, settings, end, folder, ahead)


def _run(
    section: Section, names: list[str], settings: dict[str, Any], end: float, folder: Path, ahead: bool
) -> Iterator[list[Row]]:
    share = WEIGHTS[names[0]] / sum(WEIGHTS[name] for name in names)
    seconds = max((end - time.monotonic()) * share - GRACE, 1.0)
    following = names[1:]
    if not following:
        yield section.measure(settings, seconds)
    elif ahead:
        with start_section(following[0], folder) as waiting:
            yield section.measure(settings, seconds)
            yield from _run(waiting, following, settings, end, folder, ahead)
    else:
        yield section.measure(settings, seconds)
        with start_section(following[0], folder) as waiting:
            yield from _run(waiting, following, settings, end, folder, ahead)
