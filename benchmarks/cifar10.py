r"""Make the CIFAR-10 tables: train shipped configs, each from the weights it needs, and evaluate them.

    python -m benchmarks.cifar10 --runs twin --seeds 0 1 --data-dir DIR --out FOLDER

`--runs` takes names of groups, or of configs in configs/cifar10:

| group | runs |
|---|---|
| twin | on a CPU: cpu_madry_8, then cpu_extended_16 and cpu_extended_32 from its weights; cpu_iat_32; cpu_naive_32 |
| madry | madry_8 |
| extended | extended_16 and extended_32 from madry_8's weights; iat_32; naive_32 |
| fast | fast_16, then fast_32 from its weights |

Every training is a `cli.py fit`, every evaluation a `cli.py evaluate`, in a process of its own. Each run is evaluated
on test images: clean; PGD-200 with steps of 2/255 at 8, 16 and 32/255 on the first `--images`; APGD-CE and APGD-T at
its own target eps on the first `--apgd-images`. An attack stops at an image's first adversarial iterate, and an image
that is fooled at one eps is not attacked at the next. The evaluated weights are those in FOLDER/weights, in float16.

After every run FOLDER has its record (RUN-seed-S.json), its output (RUN-seed-S.txt), and the table and the figure of
all runs so far (README.md, figure.png). The same command, started again, keeps what is finished and resumes the
training that was interrupted.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.cifar10_runs.evaluation import evaluate
from benchmarks.cifar10_runs.plan import BY_CONFIG, GROUPS, Job, Task, list_jobs, run_tasks
from benchmarks.cifar10_runs.results import format_table, plot_records
from benchmarks.cifar10_runs.setting import Setting, end_all
from benchmarks.cifar10_runs.synthetic import write_synthetic
from benchmarks.cifar10_runs.training import train, trained_file
from benchmarks.record import Record

TOY_FIT = (
    "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1",
    "--data.batch_size=8", "--data.eval_batch_size=20",
)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", required=True, choices=[*GROUPS, *BY_CONFIG], metavar="NAME", help="groups or configs"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds; every run is made with each")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10; may be left out with --toy")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; created if needed")
    parser.add_argument("--runs-dir", type=Path, help="folder of checkpoints and curves; FOLDER/runs if left out")
    parser.add_argument("--start", nargs="+", default=[], metavar="CONFIG=FILE", help="weights of runs not made here")
    parser.add_argument("--images", type=int, default=1000, help="test images for PGD-200")
    parser.add_argument("--apgd-images", type=int, default=250, help="test images for APGD")
    parser.add_argument("--batch-size", type=int, default=250, help="images per batch of an evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; each should have its own cores")
    parser.add_argument("--devices", default="1", help="trainer.devices of the trainings")
    parser.add_argument("--accelerator", default="auto", help="trainer.accelerator: auto, gpu or cpu")
    parser.add_argument("--toy", action="store_true", help="two batches per epoch and few steps, to try the command")
    parser.add_argument("fit", nargs="*", help="further options of cli.py fit, after --")
    given = parser.parse_args(argv)
    if given.data_dir is None and not given.toy:
        parser.error("--data-dir must be given: the folder with CIFAR-10")
    if given.data_dir is not None and not given.data_dir.is_dir():
        parser.error(f"--data-dir must be a folder that holds CIFAR-10, got {given.data_dir}")
    if unnamed := [start for start in given.start if start.partition("=")[0] not in BY_CONFIG]:
        parser.error(f"--start must be CONFIG=FILE, such as madry_8=madry_8.safetensors, got {unnamed[0]}")
    named = {run.config for name in given.runs for run in GROUPS.get(name) or (BY_CONFIG[name],)}
    if made := [start for start in given.start if start.partition("=")[0] in named]:
        parser.error(f"--start {made[0]}: --runs makes these weights; leave out one of the two")
    if missing := [start for start in given.start if not Path(start.partition("=")[2]).is_file()]:
        parser.error(f"--start {missing[0]}: there is no such file")
    return given


def build_setting(given: argparse.Namespace, scratch: Path) -> Setting:
    """Return the settings of all runs.

    Args:
        given: The parsed command line.
        scratch: Folder for synthetic images.
    """
    out = given.out.resolve()
    if given.toy and given.data_dir is None:
        write_synthetic(scratch)
    starts = [start.partition("=") for start in given.start]
    runs_dir = (given.runs_dir or out / "runs").resolve()
    runs_dir.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    return Setting(
        data_dir=(given.data_dir or scratch).resolve(),
        out=out,
        runs_dir=runs_dir,
        images=min(given.images, 20) if given.toy else given.images,
        apgd_images=min(given.apgd_images, 10) if given.toy else given.apgd_images,
        batch_size=given.batch_size,
        steps=(3, 2) if given.toy else (200, 100),
        place=(f"--trainer.accelerator={given.accelerator}",),
        fit=(f"--trainer.devices={given.devices}", *(TOY_FIT if given.toy else ()), *given.fit),
        starts=tuple((name, Path(file).resolve()) for name, _, file in starts),
    )


def run_jobs(jobs: Sequence[Job], setting: Setting, at_once: int) -> dict[str, str]:
    """Train and evaluate the jobs that have no record; return one line for each that failed.

    Args:
        jobs: Jobs, each after the one that it starts from.
        setting: The settings.
        at_once: Number of jobs at the same time.
    """
    tasks: list[Task] = []
    records: dict[str, Record] = {}
    lock = Lock()

    def start(job: Job) -> None:
        records[job.name] = Record(record_file(job, setting), job.seed)
        train(job, setting)

    def finish(job: Job) -> None:
        found = evaluate(job, setting)
        with lock:
            records[job.name].write(describe(job, setting) | found)
            write_tables(setting)

    for job in jobs:
        if record_file(job, setting).exists():
            print(f"{job.name}: finished before, kept", flush=True)
            continue
        needs = [f"train {job.start.name}"] if job.start in jobs and job.start is not None else []
        needs = [name for name in needs if name in {task.name for task in tasks}]
        tasks.append(Task(f"train {job.name}", partial(start, job), needs))
        tasks.append(Task(f"evaluate {job.name}", partial(finish, job), [f"train {job.name}"]))
    return run_tasks(tasks, at_once, end_all)


def record_file(job: Job, setting: Setting) -> Path:
    """Return the path of a job's record."""
    return setting.out / f"{job.name}.json"


def describe(job: Job, setting: Setting) -> dict[str, Any]:
    """Return the part of a job's record that its training decides."""
    head = {"run": job.run.config, "eps": job.run.eps, "from": job.run.start, "steps": setting.steps[0]}
    trained: dict[str, Any] = json.loads(trained_file(job, setting).read_text())
    return head | trained


def write_tables(setting: Setting) -> None:
    """Write the table and the figure of all records in the folder of results."""
    records = [json.loads(file.read_text()) for file in setting.out.glob("*-seed-*.json")]
    order = list(BY_CONFIG)
    records.sort(key=lambda record: (order.index(record["run"]), record["seed"]))
    (setting.out / "README.md").write_text(
        f"# CIFAR-10\n\n{format_table(records)}\n![Curves and accuracies](figure.png)\n"
    )
    plot_records(records).savefig(setting.out / "figure.png", dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, write records and tables; exit with 1 if a run failed."""
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted; the same command resumes"))
    with tempfile.TemporaryDirectory() as scratch:
        setting = build_setting(given, Path(scratch))
        known = [Job(BY_CONFIG[name], seed) for name, _ in setting.starts for seed in given.seeds]
        finished = [Job(run, seed) for run in BY_CONFIG.values() for seed in given.seeds]
        known += [job for job in finished if setting.weights(job).exists()]
        try:
            jobs = list_jobs(given.runs, given.seeds, known)
        except ValueError as error:
            sys.exit(str(error))
        problems = run_jobs(jobs, setting, given.jobs)
    if (table := setting.out / "README.md").exists():
        print(table.read_text())
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
