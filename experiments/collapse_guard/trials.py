"""Trainings under the collapse guard, one after the other: naive ones that must collapse, healthy ones that must not.

    python -m experiments.collapse_guard.trials --out FOLDER [--data-dir DIR] [--groups stop recover ...]

Each training is one JSON file of its command, events, results, seconds and machine, and is not repeated if the file
exists. Two calls with different groups can run at the same time.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar10_runs.setting import run_command
from benchmarks.record import Record

QUICK = "configs/quickstart.yaml"
NAIVE = "configs/quickstart_naive.yaml"
ADAPTIVE = "configs/quickstart_adaptive.yaml"
NO_TEST = ("--test_after_fit=false",)
DIGITS = ("--data=datamodules.DigitsDataModule", "--data.max_shift=1")
HALF = "--ramp.phases=[{epochs: 5, start_eps: 0, end_eps: 0.4}, {epochs: 4, end_eps: 0.4}]"
SHORT = (HALF, "--trainer.max_epochs=9", "--model.lr_scheduler=null", *NO_TEST)
TWIN = ("--data.train_size=5000", *NO_TEST)
ONE_STEP = (
    "--model.attack.steps=1", "--model.attack.relative_step_size=1", "--model.attack.start=rampart.attacks.AtImage",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A training.

    Attributes:
        group: What is expected: ``stop``, ``recover``, ``healthy`` or ``overfitting``.
        name: Name of its file.
        config: Config of the training.
        options: Further options of `cli.py fit`.
        cifar10: It needs CIFAR-10.
    """

    group: str
    name: str
    config: str
    options: tuple[str, ...] = ()
    cifar10: bool = False


def seeded(group: str, name: str, config: str, seeds: Sequence[int], *options: str) -> list[Trial]:
    """Return the same training with several seeds."""
    return [Trial(group, f"{name}_{seed}", config, (*options, f"--seed_everything={seed}")) for seed in seeds]


def phases(*parts: str) -> str:
    """Return the option that sets phases."""
    return f"--ramp.phases=[{', '.join(f'{{{part}}}' for part in parts)}]"


def objective(name: str, *settings: str) -> tuple[str, ...]:
    """Return the options that set an objective."""
    return (f"--model.objective=rampart.objectives.{name}", *(f"--model.objective.{each}" for each in settings))


TRIALS = [
    *seeded("stop", "naive_stop", NAIVE, range(10), "--guard.action=stop", *NO_TEST),
    *seeded("recover", "naive_recover", NAIVE, range(5), "--guard.action=recover"),
    *seeded("healthy", "digits_iat", QUICK, range(2)),
    *seeded("healthy", "digits_adaptive", ADAPTIVE, range(3)),
    Trial("healthy", "digits_standard", "configs/mnist/standard.yaml", (*DIGITS, *NO_TEST)),
    Trial(
        "healthy", "digits_extended", QUICK,
        (*SHORT, phases("epochs: 6, end_eps: 0.2", "epochs: 2, end_eps: 0.3", "epochs: 1, end_eps: 0.4")),
    ),
    Trial("healthy", "digits_trades", QUICK, (*SHORT, *objective("TRADES"))),
    Trial("healthy", "digits_mtl_ibp", QUICK, (*SHORT, *objective("MTLIBP", "target_eps=0.4"))),
    Trial("healthy", "digits_sabr", QUICK, (*SHORT, *objective("SABR", "target_eps=0.4"))),
    Trial("healthy", "digits_ibp", "configs/mnist/certified_cpu.yaml", (*DIGITS, "--data.batch_size=32", *NO_TEST)),
    Trial("healthy", "digits_fast", "configs/mnist/fast.yaml", (*DIGITS, *NO_TEST)),
    Trial("healthy", "cifar10_standard", "configs/cifar10/cpu_madry_8.yaml", ("--model.eps=0", *TWIN), cifar10=True),
    Trial("healthy", "cifar10_madry_8", "configs/cifar10/cpu_madry_8.yaml", TWIN, cifar10=True),
    Trial("healthy", "cifar10_iat_32", "configs/cifar10/cpu_iat_32.yaml", TWIN, cifar10=True),
    Trial("healthy", "cifar10_naive_32", "configs/cifar10/cpu_naive_32.yaml", TWIN, cifar10=True),
    Trial("healthy", "cifar10_adaptive_32", "configs/cifar10/cpu_adaptive_32.yaml", TWIN, cifar10=True),
    Trial(
        "healthy", "cifar10_extended_32", "configs/cifar10/cpu_iat_32.yaml",
        (*TWIN, phases("epochs: 5, end_eps: 16/255", "epochs: 4, end_eps: 32/255")), cifar10=True,
    ),
    Trial(
        "healthy", "cifar10_trades_8", "configs/cifar10/cpu_madry_8.yaml", (*TWIN, *objective("TRADES")), cifar10=True,
    ),
    Trial(
        "healthy", "cifar10_fast_16", "configs/cifar10/fast_16.yaml",
        (
            *TWIN, "--model.network=rampart.networks.ResNet18", "--model.network.width=8", "--data.batch_size=64",
            "--trainer.max_epochs=6",
            phases(
                "epochs: 1, start_eps: 4/255, end_eps: 8/255, steps: 3",
                "epochs: 1, start_eps: 8/255, end_eps: 12/255, steps: 5",
                "epochs: 1, start_eps: 12/255, end_eps: 16/255", "epochs: 3, end_eps: 16/255",
            ),
        ), cifar10=True,
    ),
    *seeded("overfitting", "digits_one_step_03", NAIVE, range(2), "--model.eps=0.3", *ONE_STEP, *NO_TEST),
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the trainings that have no file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/collapse_guard"), help="folder of the runs")
    parser.add_argument("--groups", nargs="+", default=["stop", "recover", "overfitting", "healthy"])
    parser.add_argument("--names", help="only trainings whose name has this text")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for group in arguments.groups:
        for trial in TRIALS:
            wanted = trial.group == group and (arguments.names or "") in trial.name
            if wanted and (arguments.data_dir or not trial.cifar10):
                run(trial, arguments.out, arguments.runs_dir.resolve(), arguments.data_dir)


def run(trial: Trial, out: Path, runs: Path, data_dir: Path | None) -> None:
    """Run a training, and write its record."""
    file, folder = out / f"{trial.name}.json", runs / trial.name
    if file.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = [f"--data.data_dir={data_dir}"] if trial.cifar10 else []
    words = ["fit", f"--config={trial.config}", *trial.options]
    private = [f"--runs_dir={runs}", f"--name={trial.name}", "--trainer.enable_progress_bar=false", *data]
    seed = next((int(word.split("=")[1]) for word in words if word.startswith("--seed_everything=")), 0)
    record, start = Record(file, seed, ["python", "cli.py", *words]), time.monotonic()
    code = run_command([*words, *private], folder / "log.txt", None, {"OMP_NUM_THREADS": "1"})
    record.write({"group": trial.group, "name": trial.name, "exit_status": code} | read_results(folder))
    print(f"{trial.name}: exit status {code}, {time.monotonic() - start:.0f} s", flush=True)


def read_results(folder: Path) -> dict[str, Any]:
    """Return events, last line of the output, and test results of a run."""
    (run_folder,) = folder.glob("fit-*")
    events, test = run_folder / "events.jsonl", run_folder / "test.json"
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.strip()]
    rows = json.loads(test.read_text())["results"] if test.exists() else []
    ramp = [line for line in lines if line.startswith("Adaptive ramp")]
    return {
        "events": [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else [],
        "last_line": lines[-1].replace(str(folder.parent), "RUNS") if lines else "",
        "ramp": ramp,
        "test": {row["name"]: round(row["accuracy"], 4) for row in rows} if rows else None,
    }


if __name__ == "__main__":
    main()
