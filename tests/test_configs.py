"""Shipped configs: overlays change the trainer alone, and eps and learning rate follow the run on several devices."""

import pkgutil
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
)

from callbacks import EpsilonRampCallback
from lightning_modules import MNISTClassifier
from lightning_modules.lr_schedules import LRSchedules
from rampart.data import EpochOrder
from rampart.schedules import Phase
from tests.commands.test_messages import ParsesOnly
from tests.conftest import ROOT

OVERLAYS = sorted((ROOT / "configs/overlays").glob("*.yaml"))
HARDWARE = [path for path in OVERLAYS if path.stem != "strong_test"]
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in OVERLAYS]
BATCH_SIZE, BATCHES = 4, 40  # of one device, per epoch


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


class Run:
    """Eps and learning rate of every optimizer step of a run, on a trainer that trains nothing."""

    def __init__(
        self,
        devices: int = 1,
        epochs: int = 4,
        phases: tuple[Phase, ...] | None = None,
        accumulate: int = 1,
        max_steps: int = -1,
        **schedules: Any,
    ) -> None:
        order = EpochOrder(BATCH_SIZE * BATCHES, BATCH_SIZE, shuffle=True, rank=0, world_size=devices)
        self.optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        trainer: Any = SimpleNamespace(
            max_epochs=epochs,
            max_steps=max_steps,
            num_training_batches=len(order),
            accumulate_grad_batches=accumulate,
            fast_dev_run=False,
            ckpt_path=None,
            callbacks=[],
            current_epoch=0,
            global_step=0,
            estimated_stepping_batches=-(-len(order) // accumulate) * epochs,
            fit_loop=SimpleNamespace(setup_data=lambda: None),
        )
        self.trainer = trainer
        self.schedules = LRSchedules(**schedules).configure(self.optimizer, trainer)
        self.module: Any = MNISTClassifier(network=nn.Linear(1, 1), eps=0.4)
        self.ramp = EpsilonRampCallback(phases)
        self.ramp.setup(trainer, self.module, "fit")
        self.ramp.on_train_start(trainer, self.module)
        self.eps: list[list[float]] = []
        self.rates: list[list[float]] = []
        for _ in range(epochs):
            self._run_epoch(len(order), accumulate)

    def _run_epoch(self, batches: int, accumulate: int) -> None:
        self.eps.append([])
        self.rates.append([])
        for batch in range(batches):
            self.ramp.on_train_batch_start(self.trainer, self.module, None, batch)
            if (batch + 1) % accumulate and batch + 1 < batches:
                continue
            self.eps[-1].append(self.module.eps)
            self.rates[-1].append(self.optimizer.param_groups[0]["lr"])
            self.trainer.global_step += 1
            if self.trainer.global_step != self.trainer.max_steps:
                self._step_schedules(batch + 1 == batches)
        self.trainer.current_epoch += 1

    def _step_schedules(self, epoch_ends: bool) -> None:
        self.optimizer.step()
        last = epoch_ends and self.trainer.current_epoch + 1 == self.trainer.max_epochs
        for schedule in self.schedules:
            if not last and (schedule["interval"] == "step" or epoch_ends):
                schedule["scheduler"].step()


def assert_equal_runs(one: Run, other: Run) -> None:
    """Compare the first and last steps of each epoch, up to the change of one step of the run with fewer steps."""
    assert one.eps[-1][-1] == other.eps[-1][-1]
    for a, b in ((one.eps, other.eps), (one.rates, other.rates)):
        change = max((abs(x - y) for epoch in b for x, y in pairwise(epoch)), default=0)
        for of_one, of_other in zip(a, b, strict=True):
            assert len(of_one) > len(of_other)
            assert of_one[0] == pytest.approx(of_other[0], abs=change)
            assert of_one[-1] == pytest.approx(of_other[-1], abs=change)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_the_same_eps_and_learning_rate_on_several_devices(path: Path) -> None:
    config = read(path)
    given = config["model"]["init_args"]
    schedule = given.get("lr_scheduler")
    settings: dict[str, Any] = {"epochs": config["trainer"]["max_epochs"]}
    if phases := config.get("ramp", {}).get("phases"):
        settings["phases"] = tuple(Phase(**phase) for phase in phases)
    if schedule:
        schedules = schedule if isinstance(schedule, list) else [schedule]
        settings["factories"] = tuple(
            partial(pkgutil.resolve_name(each["class_path"]), **each["init_args"]) for each in schedules
        )
        settings["interval"] = given.get("lr_interval", "step")
        settings["milestones"] = given.get("lr_milestones")
    one = Run(**settings)
    assert len(one.rates) == settings["epochs"]
    for devices in (2, 4):
        assert_equal_runs(one, Run(devices, **settings))


WARM_UP = partial(LinearLR, start_factor=0.25, total_iters=-1)
COSINE = partial(CosineAnnealingLR, T_max=-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"factories": partial(OneCycleLR, max_lr=1.0, pct_start=0.25)},
        {"factories": partial(OneCycleLR, max_lr=1.0, total_steps=-1, cycle_momentum=False), "accumulate": 3},
        {"factories": COSINE},
        {"factories": partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=-1)},
        {"factories": partial(PolynomialLR, total_iters=-1, power=2.0)},
        {"factories": (WARM_UP, COSINE), "milestones": (0.25,)},
        {"factories": (COSINE, COSINE), "milestones": (0.5,), "accumulate": 2},
        {
            "factories": tuple(partial(ConstantLR, factor=factor, total_iters=-1) for factor in (1.0, 0.1, 0.01)),
            "milestones": (0.5, 0.75),
        },
        {"factories": partial(MultiStepLR, milestones=[2, 3]), "interval": "epoch"},
        {"factories": partial(CosineAnnealingWarmRestarts, T_0=2), "interval": "epoch"},
        {"phases": (Phase(epochs=3, start_eps=0, end_eps=0.4, shape="cosine"), Phase(epochs=1, end_eps=0.4))},
        {"phases": (Phase(epochs=4, start_eps=0.1, end_eps=0.4, interval="epoch"),), "accumulate": 2},
    ],
    ids=str,
)
def test_schedules_in_epochs_or_fractions_of_the_run_are_the_same_on_several_devices(settings: Any) -> None:
    one = Run(**settings)
    for devices in (2, 4):
        assert_equal_runs(one, Run(devices, **settings))


def test_constant_rates_one_after_the_other_change_at_fractions_of_the_run() -> None:
    factories = tuple(partial(ConstantLR, factor=factor, total_iters=-1) for factor in (1.0, 0.1, 0.01))
    run = Run(2, factories=factories, milestones=(0.5, 0.75))
    assert [set(epoch) for epoch in run.rates] == [{1.0}, {1.0}, {0.1}, {0.01}]


def test_a_run_in_steps_is_as_long_on_any_number_of_devices() -> None:
    settings: dict[str, Any] = {"max_steps": 40, "phases": (Phase(train_steps=40, start_eps=0, end_eps=0.4),)}
    one, four = Run(epochs=1, factories=COSINE, **settings), Run(4, epochs=4, factories=COSINE, **settings)
    assert list(chain(*one.rates)) == list(chain(*four.rates))
    assert list(chain(*one.eps)) == list(chain(*four.eps))


def test_phases_in_steps_of_a_run_in_epochs_are_refused_on_several_devices() -> None:
    phases = (Phase(train_steps=160, start_eps=0, end_eps=0.4),)
    Run(phases=phases)
    with pytest.raises(ValueError, match="they last 160 optimizer steps, the run lasts 80"):
        Run(2, phases=phases)


@pytest.mark.parametrize("path", HARDWARE, ids=lambda path: path.stem)
def test_an_overlay_of_hardware_fits_every_config(path: Path) -> None:
    # Settings of a model or a data module would be refused by classes that don't have them.
    assert set(read(path)) <= {"trainer", "execution"}


def test_overlays_can_be_combined_and_the_last_wins() -> None:
    cli = ParsesOnly.make()
    for command in ("fit", "evaluate"):
        words = [f"--config={path}" for path in (ROOT / "configs/mnist/fast.yaml", *OVERLAYS, HARDWARE[1])]
        cli.parse_arguments(cli.parser, [command, *words])
        model, trainer = cli.config[command].model, cli.config[command].trainer
        assert (trainer.accelerator, trainer.devices, trainer.strategy) == ("cpu", "auto", "ddp")
        assert (trainer.precision, trainer.benchmark, trainer.sync_batchnorm) == ("bf16-mixed", False, True)
        assert len(model.init_args.test_attacks) == 4
