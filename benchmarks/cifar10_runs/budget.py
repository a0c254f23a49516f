"""Trainings that share a time: each is as long as fits into its part, measured by a short training before it."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.cifar10_runs.length import Speed, choose_epochs, count_batches, count_evaluations, scale_config
from benchmarks.cifar10_runs.plan import Job
from benchmarks.cifar10_runs.setting import ROOT, CommandError, Setting
from benchmarks.cifar10_runs.training import fit_words, is_trained, newest

EVALUATION_SHARE = 0.3  # of the time, for the evaluations
MARGIN = 0.93  # of a training's part that is planned
WARM_UP = 10  # batches of the short training that are not timed
TIMED = 20


class Budget:
    """Time that trainings and their evaluations share.

    Args:
        jobs: The jobs, in the order of their trainings.
        setting: The settings.
        seconds: Time for all of them, from now on.
    """

    def __init__(self, jobs: Sequence[Job], setting: Setting, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self._training_end = self.deadline - EVALUATION_SHARE * seconds
        self._setting = setting
        self._open = [job for job in jobs if not is_trained(job, setting)]
        with ThreadPoolExecutor() as pool:
            self._configs = dict(zip(self._open, pool.map(self._read_config, self._open), strict=True))

    def shorten(self, job: Job) -> list[str]:
        """Return options of `cli.py fit` with which the job's training ends within its part of the time.

        The part is in proportion to the cost of all trainings that are left. A training that was interrupted keeps its
        length.

        Raises:
            CommandError: If the short training before it fails, or not even the shortest training fits.
        """
        overlay = self._setting.runs_dir / f"{job.name}.length.yaml"
        if not overlay.exists():
            speed = self._measure_speed(job)
            costs = {each: self._cost(each) for each in self._open[self._open.index(job) :]}
            seconds = (self._training_end - time.monotonic()) * costs[job] / sum(costs.values())
            config = self._configs[job]
            try:
                epochs = choose_epochs(config, speed, MARGIN * seconds)
            except ValueError as error:
                raise CommandError(str(error)) from error
            own = config["trainer"]["max_epochs"]
            print(f"{job.name}: {epochs} of {own} epochs, for {seconds:.0f} s ({speed})", flush=True)
            overlay.write_text(yaml.safe_dump(scale_config(config, epochs)))
        return [f"--config={overlay}"]

    def _cost(self, job: Job) -> float:
        config = self._configs[job]
        return count_batches(config) * count_evaluations(config, config["trainer"]["max_epochs"])

    def _read_config(self, job: Job) -> dict[str, Any]:
        """Return the whole config of a job's training."""
        words = [*fit_words(job, self._setting, None), "--print_config"]
        done = subprocess.run(  # noqa: S603
            [sys.executable, "cli.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandError(f"{job.name}: {self._setting.hide_paths((done.stderr.splitlines() or [''])[-1])}")
        config: dict[str, Any] = yaml.safe_load(done.stdout)
        return config

    def _measure_speed(self, job: Job) -> Speed:
        """Return the speed of a job's last phase, measured by a short training, or before by one of the same kind."""
        config = self._configs[job]
        arguments = config["model"]["init_args"]
        objective = (arguments.get("objective") or {}).get("class_path")
        trainer = config["trainer"]["precision"]
        kind = json.dumps([arguments["network"], objective, config["data"]["init_args"], trainer, config["execution"]])
        file = self._setting.runs_dir / "speeds.json"
        known: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
        if kind not in known:
            speed = self._probe(job)
            known[kind] = [speed.evaluation, speed.validation, speed.start]
            file.write_text(json.dumps(known, indent=2))
        return Speed(*known[kind])

    def _probe(self, job: Job) -> Speed:
        config, setting = self._configs[job], self._setting
        short = scale_config(config, max(1, len((config["ramp"] or {}).get("phases") or ())))
        if phases := short.get("ramp", {}).get("phases"):
            last = phases[-1]
            short["ramp"]["phases"] = [dict(last, epochs=1, start_eps=None)]
        short["trainer"] = {"max_epochs": 1, "check_val_every_n_epoch": 1}
        short["model"] = {"init_args": {"lr_scheduler": None, "lr_milestones": None}}  # made for more epochs
        overlay = setting.runs_dir / f"{job.name}.probe.yaml"
        overlay.write_text(yaml.safe_dump(short))
        batches = min(WARM_UP + TIMED, count_batches(config))
        name = f"{job.name}-probe"
        words = [word.replace(f"--name={job.name}", f"--name={name}") for word in fit_words(job, setting, None)]
        limits = [f"--trainer.limit_train_batches={batches}", "--trainer.log_every_n_steps=1"]
        seconds = setting.run(job, [*words, f"--config={overlay}", *limits], self._training_end)
        updates, validation = read_times(newest(setting.runs_dir / name, "fit-*"))
        gaps = [after - before for before, after in pairwise(updates)]
        update = statistics.median(gaps[len(gaps) // 3 :])
        merged = dict(config, trainer=dict(config["trainer"], max_epochs=1), ramp=short.get("ramp", config["ramp"]))
        evaluations = count_evaluations(merged, 1)
        between = updates[-1] - updates[0]
        return Speed(update / evaluations, validation, max(seconds - between - validation, 0.0))


def read_times(folder: Path) -> tuple[list[float], float]:
    """Return the times at which the updates of a run were logged, and the seconds of the validation after them.

    Raises:
        CommandError: If there are fewer than two updates.
    """
    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    updates = [event.wall_time for event in events.Scalars("train/eps")] if "train/eps" in tags else []
    if len(updates) < 2:
        raise CommandError(f"a short training to measure its speed logged {len(updates)} updates, not two or more")
    ends = [event.wall_time for event in events.Scalars("val/robust_acc")] if "val/robust_acc" in tags else []
    return updates, max(ends[-1] - updates[-1], 0.0) if ends else 0.0
