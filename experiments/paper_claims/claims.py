"""Test the paper's claims by runs of `cli.py fit`: what fails at a large eps, what does not help, and what does.

    python -m experiments.paper_claims.claims --out experiments/paper_claims/results                    # bundled digits
    python -m experiments.paper_claims.claims --out OUT --scale mnist --data-dir DIR --only 'naive, seed 0'

OUT gets one folder per scale, `digits` or `mnist`. Each experiment writes NAME.json (command, training loss by
optimizer step, accuracies) and NAME.txt (log) there; README.md is a table of all of them. An experiment whose NAME.json
exists is not run again.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.record import write_json

ROOT = Path(__file__).parents[2]
BASE = {"digits": "configs/quickstart_naive.yaml", "mnist": "configs/mnist/naive.yaml"}
RAMP = {"digits": "configs/quickstart.yaml", "mnist": "configs/mnist/iat.yaml"}
SMALLER = {  # training at a smaller eps, from which the extended schedule starts
    "digits": [
        "--model.eps=0.3",
        "--ramp.phases=[{epochs: 13, start_eps: 0, end_eps: 0.3}, {epochs: 9, end_eps: 0.3}]",
    ],
    "mnist": [
        "--model.eps=0.3",
        "--ramp.phases=[{epochs: 30, start_eps: 0.01, end_eps: 0.3, interval: epoch}]",
        "--trainer.max_epochs=30",
    ],
}
LEFTOVER = [
    "--model.objective=rampart.objectives.AdversarialTraining",
    "--model.objective.init_args.leftover_gradient=true",
]
INIT = "--model.network=rampart.networks.MNISTCNN", "--model.network.init_args.init={}"
SGD = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.01",
       "--model.optimizer.init_args.momentum=0.9"]  # fmt: skip
FROM_SMALLER = "trained at 0.3"

# name: (base or ramp, further arguments)
EXPERIMENTS: dict[str, tuple[dict[str, str], list[str]]] = {
    **{f"naive, seed {seed}": (BASE, [f"--seed_everything={seed}"]) for seed in range(5)},
    "naive, Xavier": (BASE, [argument.format("xavier") for argument in INIT]),
    "naive, He": (BASE, [argument.format("he") for argument in INIT]),
    "naive, Adam 1e-4": (BASE, ["--model.optimizer=torch.optim.Adam", "--model.optimizer.init_args.lr=1e-4"]),
    "naive, SGD 0.01": (BASE, SGD),
    "naive, leftover gradient": (BASE, LEFTOVER),
    FROM_SMALLER: (RAMP, []),
    "naive from the weights at 0.3": (BASE, ["--ramp.init_from={smaller}"]),
    "ramp": (RAMP, []),
    "ramp, leftover gradient": (RAMP, LEFTOVER),
}


def run(name: str, scale: str, data_dir: str | None, runs: Path, out: Path) -> None:
    """Train, and write ``NAME.json`` and ``NAME.txt``."""
    arguments = build_arguments(name, scale, data_dir, runs, out)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "cli.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    (out / f"{_file_name(name)}.txt").write_text(_tidy(done.stdout + done.stderr, runs, data_dir))
    if done.returncode:
        raise SystemExit(f"{name} failed: {(done.stderr.splitlines() or [f'exit code {done.returncode}'])[-1]}")
    seconds = round(time.monotonic() - start, 1)
    shown = [_tidy(argument, runs, data_dir) for argument in arguments]
    report = {"name": name, "arguments": shown} | read_run(_newest(runs / _file_name(name)), seconds)
    write_json(out / f"{_file_name(name)}.json", report)


def build_arguments(name: str, scale: str, data_dir: str | None, runs: Path, out: Path) -> list[str]:
    """Return an experiment's arguments for `cli.py`.

    Raises:
        SystemExit: If the experiment starts from weights that do not exist yet.
    """
    config, further = EXPERIMENTS[name]
    arguments = ["fit", "--config", config[scale], f"--runs_dir={runs}", f"--name={_file_name(name)}"]
    arguments.append("--trainer.enable_progress_bar=false")
    if name == FROM_SMALLER:
        arguments += SMALLER[scale]
    if any("{smaller}" in argument for argument in further) and not (out / f"{_file_name(FROM_SMALLER)}.json").exists():
        raise SystemExit(
            f"{name!r} starts from the weights of {FROM_SMALLER!r}: run that one first, with the same --out"
        )
    smaller = _newest(runs / _file_name(FROM_SMALLER)) / "checkpoints/last.ckpt"
    arguments += [argument.format(smaller=smaller) if "{smaller}" in argument else argument for argument in further]
    return [*arguments, f"--data.data_dir={data_dir}"] if data_dir else arguments


def read_run(folder: Path, seconds: float) -> dict[str, Any]:
    """Return a run's accuracies, wall time, seed, code and machine, and its training loss by optimizer step."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    losses = {event.step: round(event.value, 4) for event in events.Scalars("train/adv_loss")}
    last = list(losses.values())[-5:]
    test = json.loads((folder / "test.json").read_text())
    return {
        "loss_at_the_end": sum(last) / len(last),
        "accuracy": {row["name"]: row["accuracy"] for row in test["results"]},
        "seconds": seconds,
        **{key: test[key] for key in ("images", "seed", "commit", "versions", "processor", "threads")},
        "losses": losses,
    }


def format_table(reports: list[dict[str, Any]]) -> str:
    """Format reports as Markdown."""
    names = list(reports[0]["accuracy"])
    lines = [
        f"| experiment | loss at the end | {' | '.join(names)} | seed | minutes |",
        "|---|---|" + "---|" * len(names) + "---|---|",
    ]
    for report in reports:
        accuracies = " | ".join(f"{100 * report['accuracy'][name]:.1f}" for name in names)
        minutes = report["seconds"] / 60
        lines.append(
            f"| {report['name']} | {report['loss_at_the_end']:.3f} | {accuracies} | {report['seed']} | {minutes:.1f} |"
        )
    first = reports[0]
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    machine = f"{threads} on an {first['processor']}, torch {first['versions']['torch']}"
    commits = ", ".join(sorted({report["commit"] for report in reports}))
    notes = [f"Commit {commits}.", "", f"{machine}; {first['images']:,} test images; accuracies in %."]
    return "\n".join([*lines, "", *notes, ""])


def _newest(runs: Path) -> Path:
    return max(runs.glob("fit-*"), key=lambda folder: int(folder.name.removeprefix("fit-")), default=runs)


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower())


def _tidy(text: str, runs: Path, data_dir: str | None) -> str:
    """Replace this machine's folders by short names."""
    text = text.replace(str(runs), "RUNS").replace(str(ROOT) + "/", "")
    return text.replace(data_dir, "DIR") if data_dir else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments that have no record yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for records and tables")
    parser.add_argument("--scale", choices=["digits", "mnist"], default="digits", help="data set")
    parser.add_argument("--data-dir", help="folder with MNIST/raw")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "claims", help="folder for the runs")
    parser.add_argument(
        "--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS), help="experiments to run"
    )
    arguments = parser.parse_args(argv)
    out, runs = arguments.out / arguments.scale, arguments.runs.resolve() / arguments.scale
    out.mkdir(parents=True, exist_ok=True)
    data_dir = arguments.data_dir and str(Path(arguments.data_dir).resolve())
    for name in arguments.only:
        if not (out / f"{_file_name(name)}.json").exists():
            run(name, arguments.scale, data_dir, runs, out)
    files = [out / f"{_file_name(name)}.json" for name in EXPERIMENTS]
    reports = [json.loads(file.read_text()) for file in files if file.exists()]
    (out / "README.md").write_text(format_table(reports))
    print(format_table(reports))


if __name__ == "__main__":
    main()
