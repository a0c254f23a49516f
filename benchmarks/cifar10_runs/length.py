"""The length of a training that must end within a time: its cost, and a config with fewer epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rampart.attacks import PGD, parse_eps
from rampart.schedules import Phase, eps_schedule

TRAINING_IMAGES = 50_000
SAMPLES = 20  # positions per epoch at which the number of attack steps is computed
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Speed:
    """Measured speed of a training.

    Attributes:
        evaluation: Seconds per gradient evaluation of a batch.
        validation: Seconds per validation.
        start: Seconds from the start of the process to the first step, and from the last step to its end.
    """

    evaluation: float
    validation: float
    start: float


def scale_config(config: Config, epochs: int) -> dict[str, Any]:
    """Return a config to be given after this one, so that the same schedules end after fewer epochs.

    Phases get shorter in proportion, as milestones in epochs do. Schedules with a length of -1 and milestones as
    fractions follow the run's length by themselves.

    Args:
        config: The whole config of a run whose length is given in epochs.
        epochs: Number of epochs, at least one per phase.

    Raises:
        ValueError: If phases are given in optimizer steps, or there are fewer epochs than phases.
    """
    trainer, arguments = config["trainer"], config["model"]["init_args"]
    every = min(trainer.get("check_val_every_n_epoch") or 1, epochs)
    scaled: dict[str, Any] = {"trainer": {"max_epochs": epochs, "check_val_every_n_epoch": every}}
    if phases := _phases(config):
        lengths = split_epochs([phase.length for phase in phases], epochs)
        own = config["ramp"]["phases"]
        scaled["ramp"] = {"phases": [dict(each, epochs=n) for each, n in zip(own, lengths, strict=True)]}
    schedule = arguments.get("lr_scheduler")
    if isinstance(schedule, Mapping) and arguments.get("lr_interval") == "epoch":
        settings = dict(schedule.get("init_args") or {})
        if milestones := settings.get("milestones"):
            factor = epochs / trainer["max_epochs"]
            settings["milestones"] = [max(1, round(factor * each)) for each in milestones]
            scaled["model"] = {"init_args": {"lr_scheduler": dict(schedule, init_args=settings)}}
    return scaled


def split_epochs(lengths: Sequence[int], total: int) -> list[int]:
    """Return lengths in about the same proportions, each at least 1, that add up to a total.

    Raises:
        ValueError: If the total is less than the number of lengths.
    """
    if total < len(lengths):
        raise ValueError(f"{len(lengths)} phases need at least {len(lengths)} epochs, got {total}")
    exact = [length * total / sum(lengths) for length in lengths]
    whole = [max(1, int(each)) for each in exact]
    while sum(whole) != total:
        step = 1 if sum(whole) < total else -1
        open_ = [i for i in range(len(whole)) if step > 0 or whole[i] > 1]
        whole[max(open_, key=lambda i: step * (exact[i] - whole[i]))] += step
    return whole


def count_evaluations(config: Config, epochs: int) -> float:
    """Return the number of gradient evaluations per training image of a run, each attack step and update as one.

    Args:
        config: The whole config.
        epochs: Number of epochs of the run.

    Raises:
        ValueError: If the attack is not PGD, or the run can't have this length.
    """
    phases = _phases(dict(config, **scale_config(config, epochs)))
    attack = _attack(config)
    if not phases:
        eps = parse_eps(config["model"]["init_args"]["eps"])
        return epochs * (attack.steps_at(eps) + 1)
    total = 0.0
    for epoch in range(epochs):
        for sample in range(SAMPLES):
            phase, radius = eps_schedule(phases, epoch, sample, SAMPLES, 0)
            total += attack.with_settings(steps=phase.steps, step_size=phase.step_size).steps_at(radius) * (radius > 0)
    return total / SAMPLES + epochs


def count_batches(config: Config) -> int:
    """Return the number of training batches per epoch."""
    data = config["data"]["init_args"]
    images: int = data.get("train_size") or TRAINING_IMAGES - data["val_size"]
    limit = config["trainer"].get("limit_train_batches")
    size: int = data["batch_size"]
    batches = images // size if data.get("drop_last") else math.ceil(images / size)
    return min(batches, limit) if isinstance(limit, int) else batches


def predict_seconds(config: Config, speed: Speed, epochs: int) -> float:
    """Return the time of a training with this number of epochs."""
    validations = epochs // min(config["trainer"].get("check_val_every_n_epoch") or 1, epochs)
    updates = count_batches(config) * count_evaluations(config, epochs) * speed.evaluation
    return speed.start + updates + validations * speed.validation


def choose_epochs(config: Config, speed: Speed, seconds: float) -> int:
    """Return the largest number of epochs, up to the config's own, with which a training ends in time.

    If validations choose the checkpoint, the last epoch has one.

    Raises:
        ValueError: If even the shortest one takes longer.
    """
    own = config["trainer"]["max_epochs"]
    least = min(own, max(1, len(_phases(config)), 1 + len(config["model"]["init_args"].get("lr_milestones") or ())))
    every = config["trainer"].get("check_val_every_n_epoch") or 1
    chooses = (config.get("checkpoint") or {}).get("monitor") is not None
    lengths = [n for n in range(own, least - 1, -1) if n == own or n < every or not chooses or n % every == 0]
    for epochs in lengths:
        if predict_seconds(config, speed, epochs) <= seconds:
            return epochs
    needed = predict_seconds(config, speed, lengths[-1])
    raise ValueError(
        f"{lengths[-1]} epochs, the least, take {needed:.0f} s, and there are {seconds:.0f} s: raise --budget, or "
        "give fewer --runs"
    )


def _phases(config: Config) -> list[Phase]:
    found = [Phase(**phase) for phase in (config.get("ramp") or {}).get("phases") or ()]
    if any(phase.epochs is None for phase in found):
        raise ValueError("a run with phases in train_steps can't be shortened: leave out --budget")
    return found


def _attack(config: Config) -> PGD:
    given = config["model"]["init_args"].get("attack") or {"class_path": "rampart.attacks.PGD"}
    if given["class_path"] != "rampart.attacks.PGD":
        raise ValueError(f"the cost of {given['class_path']} is unknown: leave out --budget")
    settings = given.get("init_args") or {}
    return PGD(**{name: settings[name] for name in ("steps", "step_size", "relative_step_size") if name in settings})
