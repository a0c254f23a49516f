"""Train at large target eps by several methods, from several initialisations, and find the largest eps of each.

    python -m experiments.large_eps.grid --data-dir DIR

Target eps of 0.30 to 0.45 on the bundled digits and of 16 to 40/255 on part of CIFAR-10; five methods at the same
number of training images, attack steps and updates; three initialisations; three seeds. DIR has CIFAR-10, in a form
that `datamodules.CIFAR10DataModule` reads; it is not needed for `--data digits`.

| method | eps of training |
|---|---|
| naive | the target from the first step |
| recover | as naive; when training collapses, the guard goes back and raises eps from a smaller one |
| extended | 3/4 of the target (CIFAR-10: 1/2) in the first half of the run, then the target |
| iat | rises with every step from 0 to the target in the first 60% of the run |
| adaptive | rises to the target as fast as the network learns |

Every training is a `cli.py fit` in a process of its own with one thread; `--processes` of them run at a time. OUT gets
runs.json, with every finished training and the error of every failed one, the tables (README.md) and figure.png, all
written again after each training. The most informative trainings come first, so that a call that is stopped leaves a
whole picture of fewer seeds. The same command, started again, trains what is missing; a training that was interrupted
starts again. Options after `--` go to every `cli.py fit`; an OUT is for one set of them. On a GPU, all of CIFAR-10::

    gpu="-- --data.train_size=null --model.network.init_args.width=64 --config configs/overlays/h100.yaml"
    python -m experiments.large_eps.grid --data cifar10 --data-dir DIR --out OUT --processes 1 $gpu
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.cifar10_runs.plan import Task, run_tasks
from benchmarks.cifar10_runs.setting import ROOT, end_all
from experiments.large_eps.plan import DATA, INITS, METHODS, SEEDS, Training, list_trainings
from experiments.large_eps.results import describe_result, format_tables, plot_records
from experiments.large_eps.training import InterruptedTraining, Setting, train
from rampart.files import write_whole

RESULTS = Path(__file__).parent / "results"
RUNS = ROOT / "runs" / "large_eps"
TARGETS = [target for data in DATA.values() for target in data.targets]


class Grid:
    """Records of trainings, and the trainings that are still to be made.

    Args:
        out: Folder of results.
        setting: Settings of all trainings.
        minutes: Time in which trainings are started, so that they end in it; None for no limit.

    Raises:
        ValueError: If the folder has records of trainings with other options.
    """

    def __init__(self, out: Path, setting: Setting, minutes: float | None = None) -> None:
        self._out, self._setting, self._file = out, setting, out / "runs.json"
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._lock, self._stopped = Lock(), False
        kept: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        if (before := kept.get("options", list(setting.options))) != list(setting.options):
            raise ValueError(f"--out {out} has trainings with the options {before}: give these, or another --out")
        self.records: list[dict[str, Any]] = kept.get("runs", [])

    def run(self, trainings: Sequence[Training], processes: int, retry: bool = False) -> dict[str, str]:
        """Make the trainings that have no record; return one line for each that was interrupted.

        Args:
            trainings: Trainings in their order.
            processes: Number of trainings at the same time.
            retry: Repeat those whose record is an error.
        """
        done = {_key(record) for record in self.records if not (retry and record["error"])}
        left = [training for training in trainings if _key(vars(training)) not in done]
        print(f"{len(trainings) - len(left)} of {len(trainings)} trainings are finished, kept", flush=True)
        return run_tasks([Task(each.name, partial(self._train, each)) for each in left], processes, self._stop)

    def write(self) -> None:
        """Write the records, the tables and the figure."""
        runs = ",\n  ".join(json.dumps(record) for record in self.records)
        options = json.dumps(list(self._setting.options))
        write_whole(self._file, f'{{"options": {options}, "runs": [\n  {runs}\n]}}\n')
        done = [record for record in self.records if not record["error"]]
        write_whole(self._out / "README.md", format_tables(self.records))
        if done:
            plot_records(done).savefig(self._out / "figure.png", dpi=100)

    def _train(self, training: Training) -> None:
        if self._stopped or not self._has_time(training):
            return
        try:
            record = train(training, self._setting)
        except InterruptedTraining:
            if not self._stopped:
                raise
            return
        with self._lock:
            self.records = [other for other in self.records if _key(other) != _key(record)] + [record]
            self.write()
        print(f"{time.strftime('%H:%M:%S')} {training.name}: {describe_result(record)}", flush=True)

    def _has_time(self, training: Training) -> bool:
        """Return True if a training of the usual length ends in time."""
        if self._deadline is None:
            return True
        seconds = sorted(record["seconds"] for record in self.records if record["data"] == training.data)
        usual = seconds[len(seconds) // 2] if seconds else 0.0
        return time.monotonic() + usual < self._deadline

    def _stop(self) -> None:
        self._stopped = True
        end_all()


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("data", "method", "init", "target", "seed"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of results; that of this experiment if left out"
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=RUNS, help="folder of logs and curves; runs/large_eps if left out"
    )
    parser.add_argument("--minutes", type=float, help="start no training that would end later than this")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time, each on a core")
    parser.add_argument("--retry", action="store_true", help="repeat the trainings that failed")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), help="data sets")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS), help="initialisations")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="seeds")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[], help="target eps; all if left out")
    parser.add_argument("options", nargs="*", help="after --: options of cli.py fit")
    given = parser.parse_args(argv)
    if given.processes < 1:
        parser.error(f"--processes must be at least 1, got {given.processes}")
    if given.data_dir is None and any(DATA[name].needs_folder for name in given.data):
        parser.error("--data-dir must be given, the folder with CIFAR-10: give it, or --data digits")
    if given.data_dir is not None and not given.data_dir.is_dir():
        parser.error(f"--data-dir must be a folder that holds CIFAR-10, got {given.data_dir}")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Train what has no record, and write records, tables and figure; exit with 1 if a training was interrupted."""
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted; the same command continues"))
    setting = Setting(
        given.runs_dir.resolve(), None if given.data_dir is None else given.data_dir.resolve(), tuple(given.options)
    )
    trainings = list_trainings(given.data, given.methods, given.inits, given.targets, given.seeds)
    try:
        grid = Grid(given.out, setting, given.minutes)
    except ValueError as error:
        sys.exit(str(error))
    problems = grid.run(trainings, given.processes, given.retry)
    grid.write()
    print((given.out / "README.md").read_text())
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
