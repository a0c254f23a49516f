r"""Make the CIFAR-10 tables: train shipped configs, each from the weights it needs, and evaluate them.

    python -m benchmarks.cifar10 --runs twin --seeds 0 1 --data-dir DIR --out FOLDER

`--runs` takes names of groups, or of configs in configs/cifar10:

| group | runs |
|---|---|
| twin | on a CPU: cpu_madry_8, then cpu_extended_16 and cpu_extended_32 from its weights; cpu_iat_32; cpu_naive_32 |
| madry | madry_8 |
| extended | extended_16 and extended_32 from madry_8's weights; iat_32; naive_32 |
| fast | fast_16, then fast_32 from its weights |
| chained | chained_8_16_32 |
| standard | standard |

Every training is a `cli.py fit`, every evaluation a `cli.py evaluate`, in a process of its own. Each run is evaluated
on test images: clean; PGD-200 with steps of 2/255 at 8, 16 and 32/255 on the first `--images`; APGD-CE and APGD-T at
its own target eps on the first `--apgd-images`. An attack stops at an image's first adversarial iterate, and an image
that is fooled at one eps is not attacked at the next. The evaluated weights are those in FOLDER/weights, in float16.

After every run FOLDER has its record (RUN-seed-S.json), its output (RUN-seed-S.txt), and the table and the figure of
all runs so far (README.md, figure.png). The same command, started again, keeps what is finished and resumes the
training that was interrupted.

With `--budget SECONDS` everything ends in time. Trainings come first, one at a time, in 70% of it: a training of 30
batches measures the speed, then each run gets as many of its epochs as fit into its part, with phases and schedules
shortened in proportion. Evaluations follow, `--jobs` at a time: first 1,000 and 250 images, then as many as are asked
for, if the time is enough. A GPU that is there for ten minutes at a time makes the tables in these calls::

    gpu="-- --config configs/overlays/h100.yaml --config configs/overlays/bf16.yaml"
    all="--data-dir DIR --out FOLDER --runs-dir SCRATCH --images 10000 --apgd-images 1000 --batch-size 1000 --jobs 4"
    python -m benchmarks.cifar10 --runs madry $all --budget 570 $gpu
    python -m benchmarks.cifar10 --runs extended $all --budget 570 --start madry_8=MADRY $gpu
    python -m benchmarks.cifar10 --runs fast_16 $all --budget 570 $gpu
    python -m benchmarks.cifar10 --runs fast_32 $all --budget 570 --start fast_16=FAST $gpu

MADRY and FAST are FOLDER/weights/RUN-seed-0.safetensors of an earlier call. Only FOLDER has to be kept between calls;
SCRATCH has checkpoints. Weights of a ResNet-18 take 22 MB. To copy them in parts of at most 15 MiB and to join these::

    split -b 15m RUN-seed-0.safetensors RUN-seed-0.safetensors.
    cat RUN-seed-0.safetensors.* > RUN-seed-0.safetensors

`python -m benchmarks.cifar10_runs.ship` copies the weights of a finished run, with its record, to pretrained/cifar10.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.cifar10_runs.budget import Budget
from benchmarks.cifar10_runs.evaluation import evaluate
from benchmarks.cifar10_runs.plan import BY_CONFIG, GROUPS, Job, Task, list_jobs, run_tasks
from benchmarks.cifar10_runs.results import format_table, plot_records
from benchmarks.cifar10_runs.setting import CommandError, Setting, end_all
from benchmarks.cifar10_runs.synthetic import write_synthetic
from benchmarks.cifar10_runs.training import is_trained, train, trained_file
from benchmarks.record import Record

FIRST = (1000, 250)
"""Test images for PGD and APGD in the first evaluation of a budget."""

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
    parser.add_argument("--budget", type=float, help="seconds for everything; trainings are shortened to fit")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; each should have its own cores")
    parser.add_argument("--devices", default="1", help="trainer.devices of the trainings")
    parser.add_argument("--accelerator", default="auto", help="trainer.accelerator: auto, gpu or cpu")
    parser.add_argument("--toy", action="store_true", help="two batches per epoch and few steps, to try the command")
    parser.add_argument("options", nargs="*", help="after --: options of cli.py fit; --model.network* of evaluate too")
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
    model = [word for word in given.options if word.startswith("--model.network")]
    fit = [word for word in given.options if word not in model]
    return Setting(
        data_dir=(given.data_dir or scratch).resolve(),
        out=out,
        runs_dir=runs_dir,
        images=min(given.images, 20) if given.toy else given.images,
        apgd_images=min(given.apgd_images, 10) if given.toy else given.apgd_images,
        batch_size=given.batch_size,
        steps=(3, 2) if given.toy else (200, 100),
        both=(f"--trainer.accelerator={given.accelerator}", *model),
        fit=(f"--trainer.devices={given.devices}", *(TOY_FIT if given.toy else ()), *fit),
        starts=tuple((name, Path(file).resolve()) for name, _, file in starts),
    )


def run_jobs(jobs: Sequence[Job], setting: Setting, at_once: int, seconds: float | None = None) -> dict[str, str]:
    """Train and evaluate the jobs that have no record; return one line for each that failed.

    Args:
        jobs: Jobs, each after the one that it starts from.
        setting: The settings.
        at_once: Number of trainings and evaluations at the same time; with a budget, of evaluations alone.
        seconds: Budget for all of them; None for no limit.
    """
    kept = [job for job in jobs if record_file(job, setting).exists()]
    for job in kept:
        print(f"{job.name}: finished before, kept", flush=True)
    left = [job for job in jobs if job not in kept]
    budget = None if seconds is None else Budget(left, setting, seconds)
    records: dict[str, Record] = {}
    lock = Lock()

    def begin(job: Job) -> None:
        records[job.name] = Record(record_file(job, setting), job.seed)
        if budget is None or is_trained(job, setting):
            train(job, setting)
        else:
            train(job, setting, budget.shorten(job), budget.deadline)

    def finish(job: Job) -> None:
        for found in evaluate_in_time(job, setting, budget):
            with lock:
                records[job.name].write(describe(job, setting) | found)
                write_tables(setting)

    names = [f"train {job.name}" for job in left]
    tasks: list[Task] = []
    for number, job in enumerate(left):
        needs = [f"train {job.start.name}"] if job.start is not None and job.start in left else []
        tasks.append(Task(names[number], partial(begin, job), needs, () if budget is None else names[:number]))
        after = () if budget is None else names
        tasks.append(Task(f"evaluate {job.name}", partial(finish, job), names[number : number + 1], after))
    return run_tasks(tasks, at_once, end_all)


def evaluate_in_time(job: Job, setting: Setting, budget: Budget | None) -> Iterator[dict[str, Any]]:
    """Evaluate a job; with a budget first on at most :data:`FIRST` images, then on all if the time is enough."""
    if budget is None:
        yield evaluate(job, setting, setting.images, setting.apgd_images)
        return
    first = min(setting.images, FIRST[0]), min(setting.apgd_images, FIRST[1])
    yield evaluate(job, setting, *first, budget.deadline)
    if first != (setting.images, setting.apgd_images):
        try:
            yield evaluate(job, setting, setting.images, setting.apgd_images, budget.deadline)
        except CommandError as error:
            print(f"{job.name}: {error}; the record has the first {first[0]:,} images", flush=True)


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
            problems = run_jobs(jobs, setting, given.jobs, given.budget)
        except (ValueError, CommandError) as error:
            sys.exit(str(error))
    if (table := setting.out / "README.md").exists():
        print(table.read_text())
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
