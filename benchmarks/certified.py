r"""Train certified configs and variants of them, and evaluate each from both sides: certificates and attacks.

    python -m benchmarks.certified --runs levers --data-dir DIR --out FOLDER

`--runs` takes names of groups:

| group | runs |
|---|---|
| cpu | configs/mnist/certified_cpu.yaml |
| levers | a narrow, short form of that config, and the same with one setting changed at a time |
| gpu | configs/mnist/certified.yaml; add `-- --config configs/overlays/h100.yaml` |
| cifar10 | configs/cifar10/certified_16.yaml and certified_32.yaml; add the same |

Every training is a `cli.py fit`, every evaluation a `cli.py evaluate --certify true`, in a process of its own. The
first evaluation gives each of the first `--images` test images its certificates, and attacks it by PGD with 10 steps.
The second runs AutoAttack at the target eps on the first `--attacked-images`. The evaluated weights are those in
FOLDER/weights, in float16: the certificates are of the bits that are kept.

FOLDER has each run's record (RUN-seed-S.json) and output (RUN-seed-S.txt), and the table of all runs (README.md). The
same command, started again, keeps what is finished and resumes the training that was interrupted.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cifar10_runs.plan import Job, Run, Task, run_tasks
from benchmarks.cifar10_runs.setting import Setting, end_all
from benchmarks.cifar10_runs.training import newest, train, trained_file
from benchmarks.record import Record
from rampart.attacks import parse_eps

PGD = '[{"class_path": "rampart.attacks.PGD", "init_args": {"steps": 10, "stop_when_fooled": true}}]'
EPS = {"mnist": ("0.1", "0.2", "0.3", "0.4"), "cifar10": ("2/255", "8/255", "16/255", "32/255")}


def ramp(clean: int, rise: int, rest: int, eps: float = 0.4, milestones: Sequence[int] = (4, 5)) -> tuple[str, ...]:
    """Return the options of a run of ``clean + rise + rest`` epochs."""
    rising = [
        {"epochs": clean, "end_eps": 0},
        {"epochs": rise, "start_eps": 0, "end_eps": eps, "shape": "smoothed"},
        {"epochs": rest, "end_eps": eps},
    ]
    return (
        f"--ramp.phases={json.dumps(rising)}", f"--trainer.max_epochs={clean + rise + rest}",
        f"--model.lr_scheduler.init_args.milestones={list(milestones)}",
    )  # fmt: skip


def lever(variant: str, *options: str) -> Run:
    """Return a narrow, short form of certified_cpu.yaml with further options."""
    base = (NARROW, *ramp(1, 2, 3))
    return Run("certified_cpu", 0.4, None, (*base, *options), "mnist", variant)


NARROW = "--model.network.init_args.width=16"
GROUPS = {
    "cpu": (Run("certified_cpu", 0.4, folder="mnist"),),
    "levers": (
        lever("short"),
        lever("no_gates", "--model.network={class_path: rampart.networks.CNN5, init_args: {width: 16, levels: null}}"),
        lever("default_init", "--model.network.init_args.init=default"),
        lever("no_regularisers", "--model.objective.init_args.regularisation=0"),
        lever(
            "clean_weight", "--model.objective.init_args.clean_weight_start=0.3",
            "--model.objective.init_args.clean_weight_end=0.3",
        ),
        lever("shift", "--data.max_shift=1"),
        lever("eps_0.42", *ramp(1, 2, 3, 0.42), "--model.objective.init_args.target_eps=0.42"),
        lever("l1", "--model.objective.init_args.l1=2e-6"),
        lever("longer", *ramp(1, 4, 7, milestones=(8, 10))),
        lever("wider", "--model.network.init_args.width=32"),
    ),
    "gpu": (Run("certified", 0.4, folder="mnist"),),
    "cifar10": (Run("certified_16", 16 / 255), Run("certified_32", 32 / 255)),
}  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, choices=GROUPS, metavar="GROUP", help="groups of runs")
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="variants of the group levers to make; all if left out"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds; every run is made with each")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the images")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; created if needed")
    parser.add_argument("--runs-dir", type=Path, help="folder of checkpoints and curves; FOLDER/runs if left out")
    parser.add_argument("--images", type=int, default=10_000, help="test images for certificates and PGD")
    parser.add_argument("--attacked-images", type=int, default=0, help="test images for AutoAttack")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; each should have its own cores")
    parser.add_argument("options", nargs="*", help="after --: further options of cli.py fit")
    given = parser.parse_args(argv)
    if not given.data_dir.is_dir():
        parser.error(f"--data-dir must be a folder that holds the images, got {given.data_dir}")
    variants = [run.variant for run in GROUPS["levers"]]
    if unknown := [name for name in given.only or () if name not in variants]:
        parser.error(f"--only must be of {', '.join(variants)}, got {unknown[0]}")
    return given


def evaluate(job: Job, setting: Setting) -> dict[str, Any]:
    """Evaluate a job's weights from both sides, and return what the record keeps of the reports."""
    start, found = time.monotonic(), {}
    eps = [size for size in EPS[job.run.folder] if parse_eps(size, "Linf") <= job.run.eps + 1e-9]
    kinds = {"certificates": (f"--attacks={PGD}", f"--eps=[{','.join(eps)}]", setting.images)}
    if setting.apgd_images:
        kinds["autoattack"] = ("--preset=autoattack", f"--eps=[{eps[-1]}]", setting.apgd_images)
    for kind, (attacks, sizes, images) in kinds.items():
        words = [
            "evaluate", *setting.common(job, f"{job.name}-{kind}"), f"--ckpt_path={setting.weights(job)}", attacks,
            sizes, f"--num_images={images}", "--certify=true", "--skip_certified=true",
        ]  # fmt: skip
        setting.run(job, words)
        folder = newest(setting.runs_dir / f"{job.name}-{kind}", "evaluate-*")
        report = json.loads((folder / "report.json").read_text())
        kept = ("images", "clean", "robust", "stages", "certificates", "timings", "certificate_timings")
        command = setting.hide_paths(" ".join(words))
        found[kind] = {"command": command, **{name: report[name] for name in kept}}
    return found | {"evaluation_seconds": round(time.monotonic() - start, 1)}


def run_job(job: Job, setting: Setting) -> None:
    """Train and evaluate a job, and write its record and the table of all."""
    record = Record(setting.out / f"{job.name}.json", job.seed)
    train(job, setting)
    trained = json.loads(trained_file(job, setting).read_text())
    head = {"run": job.run.config, "variant": job.run.variant, "options": list(job.run.options), "eps": job.run.eps}
    record.write(head | trained | evaluate(job, setting))
    write_table(setting.out)


def write_table(out: Path) -> None:
    """Write the table of all records of a folder."""
    records = [json.loads(file.read_text()) for file in sorted(out.glob("*-seed-*.json"))]
    records.sort(key=lambda record: (record["run"], -record["certificates"]["certificates"]["certified"][-1]["count"]))
    head = "| run | seed | clean | PGD-10 | certified | AutoAttack | epochs | minutes of training |"
    lines = ["# Certified training", "", head, f"|{'---|' * (head.count('|') - 1)}"]
    for record in records:
        found, strong = record["certificates"], record.get("autoattack")
        attacked = "" if strong is None else f"{_rate(strong['robust'][-1])} on {strong['images']:,} images"
        seconds = record["fit_seconds"]
        cells = [
            " ".join([record["run"], record["variant"]]).strip(), str(record["seed"]), _rate(found["clean"]),
            _rate(found["robust"][-1]), _rate(found["certificates"]["certified"][-1]), attacked, str(record["epochs"]),
            "" if seconds is None else f"{seconds / 60:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    images = sorted({record["certificates"]["images"] for record in records})
    lines += ["", NOTE.format(images=" or ".join(f"{number:,}" for number in images))]
    (out / "README.md").write_text("\n".join(lines) + "\n")


NOTE = (
    "Accuracies in % at the run's target eps, with 95% intervals over images in parentheses, on the first {images}\n"
    "test images. No perturbation up to eps makes the network misclassify a certified image. Weights are in float16."
)


def _rate(rate: dict[str, Any]) -> str:
    low, high = rate["interval_95"]
    return f"{100 * rate['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, write records and the table; exit with 1 if a run failed."""
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted; the same command resumes"))
    out = given.out.resolve()
    runs_dir = (given.runs_dir or out / "runs").resolve()
    for folder in (out, runs_dir):
        folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        data_dir=given.data_dir.resolve(), out=out, runs_dir=runs_dir, images=given.images,
        apgd_images=given.attacked_images, batch_size=250, fit=tuple(given.options),
    )  # fmt: skip
    runs = [run for name in given.runs for run in GROUPS[name] if not given.only or run.variant in given.only]
    jobs = [Job(run, seed) for seed in given.seeds for run in runs]
    left = [job for job in jobs if not (out / f"{job.name}.json").exists()]
    for job in jobs:
        if job not in left:
            print(f"{job.name}: finished before, kept", flush=True)
    problems = run_tasks([Task(job.name, partial(run_job, job, setting)) for job in left], given.jobs, end_all)
    if (table := out / "README.md").exists():
        print(table.read_text())
    if problems:
        sys.exit("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


if __name__ == "__main__":
    main()
