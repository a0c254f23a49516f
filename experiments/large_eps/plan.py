"""The trainings of the grid: options of each, and their order."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cifar10_runs.setting import ROOT

METHODS = ("naive", "recover", "extended", "iat", "adaptive")
INITS = ("default", "xavier", "he")
SEEDS = (0, 1, 2)
CALLBACK = "experiments.large_eps.summary.SummaryCallback"
TEST_ATTACK = {
    "class_path": "rampart.attacks.PGD",
    "init_args": {"steps": 20, "relative_step_size": 0.5, "step_schedule": "linear", "stop_when_fooled": True},
}
"""PGD with 20 steps that shrink from eps / 2, the same for all trainings."""


@dataclass(frozen=True)
class DataSet:
    """A data set with its config and its target eps.

    Attributes:
        config: Path of the config from the repository's root.
        targets: Target eps in the form of the options, the most informative first.
        smaller: Eps of the first half of extended training, as a part of the target.
        needs_folder: True if the images are in a folder that must be given.
    """

    config: str
    targets: tuple[str, ...]
    smaller: Fraction
    needs_folder: bool

    def read_config(self) -> dict[str, Any]:
        """Return the content of the config."""
        content: dict[str, Any] = yaml.safe_load((ROOT / self.config).read_text())
        return content


HERE = Path(__file__).parent.relative_to(ROOT)
DATA = {
    "digits": DataSet(f"{HERE}/digits.yaml", ("0.4", "0.45", "0.35", "0.3"), Fraction(3, 4), needs_folder=False),
    "cifar10": DataSet(
        f"{HERE}/cifar10.yaml", ("32/255", "40/255", "24/255", "16/255"), Fraction(1, 2), needs_folder=True
    ),
}


@dataclass(frozen=True)
class Training:
    """One training of the grid.

    Attributes:
        data: Name of the data set, a key of :data:`DATA`.
        method: One of :data:`METHODS`.
        init: Initialisation of the network, one of :data:`INITS`.
        target: Target eps in the form of the options, such as ``"0.4"`` or ``"32/255"``.
        seed: Seed of the initial weights, the order of the images and the attacks.
    """

    data: str
    method: str
    init: str
    target: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder, such as ``cifar10-iat-he-32-seed-0``."""
        return f"{self.data}-{self.method}-{self.init}-{self.target.removesuffix('/255')}-seed-{self.seed}"

    def list_options(self) -> list[str]:
        """Return the options of `cli.py fit` that change the config of its data set."""
        attack = json.dumps([{"attack": TEST_ATTACK, "eps": self.target}])
        return [
            f"--seed_everything={self.seed}", f"--model.eps={self.target}", f"--model.test_attacks={attack}",
            f"--model.network.init_args.init={self.init}", *self._list_method_options(),
        ]  # fmt: skip

    def _list_method_options(self) -> list[str]:
        data = DATA[self.data]
        epochs: int = data.read_config()["trainer"]["max_epochs"]
        if self.method == "recover":
            return ["--guard.action=recover"]
        if self.method == "extended":
            half = epochs // 2
            smaller = str(data.smaller * Fraction(self.target))
            phases = [{"epochs": half, "end_eps": smaller}, {"epochs": epochs - half, "end_eps": self.target}]
            return [f"--ramp.phases={json.dumps(phases)}"]
        if self.method == "iat":
            rise = round(0.6 * epochs)
            rising = {"epochs": rise, "start_eps": 0, "end_eps": self.target}
            return [f"--ramp.phases={json.dumps([rising, {'epochs': epochs - rise, 'end_eps': self.target}])}"]
        return ["--ramp.adaptive=true"] if self.method == "adaptive" else []


def list_trainings(
    data: Iterable[str], methods: Sequence[str], inits: Sequence[str], targets: Sequence[str], seeds: Sequence[int]
) -> list[Training]:
    """Return the trainings in the order in which they run, the most informative first.

    All of one seed are before the next seed, all of one initialisation before the next, and of these all methods at
    one target eps, of all data sets, before the next target.

    Args:
        data: Names of data sets.
        methods: Names of methods.
        inits: Names of initialisations.
        targets: Target eps in the form of the options; all if empty.
        seeds: Seeds.
    """
    places = range(max(len(DATA[name].targets) for name in DATA))
    sets = [(name, DATA[name].targets) for name in data]
    return [
        Training(name, method, init, known[place], seed)
        for seed, init, place, (name, known), method in product(seeds, inits, places, sets, methods)
        if not targets or known[place] in targets
    ]
