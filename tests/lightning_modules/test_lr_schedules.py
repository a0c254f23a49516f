import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau as LightningPlateau
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, IterableDataset

from cli import main
from lightning_modules import AdversarialClassifier
from lightning_modules.lr_schedules import build_schedules
from rampart.attacks import PGD
from rampart.data import TensorBatches
from tests.conftest import ROOT

ONE_CYCLE = partial(OneCycleLR, max_lr=1.0, div_factor=1, pct_start=0.5, anneal_strategy="linear", cycle_momentum=False)


class Rates(Callback):
    """Records the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def batches(n: int = 40, batch_size: int = 10, **settings: Any) -> TensorBatches:
    images = torch.randint(256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(n) % 10, batch_size, shuffle=True, **settings)


def fit(
    folder: Path, lr_scheduler: Any, *callbacks: Callback, data: Any = None, val: Any = None, ckpt_path: Any = None,
    settings: Any = None, **trainer: Any,
) -> tuple[list[float], AdversarialClassifier]:  # fmt: skip
    torch.manual_seed(0)
    module = AdversarialClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 10)),
        eps=0.1,
        attack=PGD(steps=1),
        val_attack=PGD(steps=1),
        optimizer=partial(SGD, lr=1.0),
        lr_scheduler=lr_scheduler,
        **(settings or {}),
    )
    rates = Rates()
    Trainer(
        **({"max_epochs": 3, "enable_progress_bar": False, "enable_model_summary": False} | trainer),
        default_root_dir=folder,
        logger=False,
        accelerator="cpu",
        callbacks=[rates, *callbacks],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    ).fit(module, batches() if data is None else data, val, ckpt_path=ckpt_path)
    return rates.seen, module


def read_rates(factory: Any, updates: int) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, seen = factory(optimizer), []
    for _ in range(updates):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("data", "trainer", "updates"),
    [
        ({}, {}, 12),
        ({"batch_size": 7}, {}, 18),
        ({"batch_size": 7, "world_size": 2}, {"max_epochs": 5}, 15),
        ({}, {"accumulate_grad_batches": 3}, 6),
        ({}, {"callbacks": [GradientAccumulationScheduler({1: 2})]}, 8),
        ({}, {"max_steps": 7}, 7),
        ({}, {"limit_train_batches": 2, "max_epochs": 4}, 8),
    ],
)
def test_a_schedule_ends_with_the_run(tmp_path: Path, data: Any, trainer: Any, updates: int) -> None:
    callbacks = trainer.pop("callbacks", [])
    rates, _ = fit(tmp_path, ONE_CYCLE, *callbacks, data=batches(**data), **trainer)
    assert rates == pytest.approx(read_rates(partial(ONE_CYCLE, total_steps=updates), updates))
    assert rates[-1] < 1e-4


def test_the_fast_config_has_the_read_rates_its_published_run() -> None:
    published, now = (
        yaml.safe_load((ROOT / path).read_text())["model"]["init_args"]["lr_scheduler"]
        for path in ("pretrained/mnist/fast/config.yaml", "configs/mnist/fast.yaml")
    )
    assert published["class_path"] == now["class_path"] == "torch.optim.lr_scheduler.OneCycleLR"
    assert now["init_args"]["total_steps"] == -1

    def following(optimizer: Any) -> Any:
        factory = partial(OneCycleLR, **now["init_args"])
        return build_schedules([factory], None, optimizer, lambda: 15 * 938)[0]

    assert read_rates(following, 14070) == read_rates(partial(OneCycleLR, **published["init_args"]), 14070)


@pytest.mark.parametrize(
    "factory",
    [
        partial(CosineAnnealingLR, T_max=-1),
        partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=-1),
        lambda optimizer: PolynomialLR(optimizer, total_iters=-1, power=2.0),
        partial(OneCycleLR, max_lr=1.0, total_steps=-1),
    ],
)
def test_every_schedule_of_torch_can_have_the_length_of_the_run(tmp_path: Path, factory: Any) -> None:
    def given(optimizer: Any) -> Any:
        if isinstance(factory, partial):
            return factory(optimizer, **{name: 12 for name, value in factory.keywords.items() if value == -1})
        return PolynomialLR(optimizer, total_iters=12, power=2.0)

    rates, _ = fit(tmp_path, factory)
    assert rates == pytest.approx(read_rates(given, 12))


@pytest.mark.parametrize("at_step", [5, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, at_step: int) -> None:
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, trained = fit(tmp_path, ONE_CYCLE, save)
    rest, resumed = fit(tmp_path, ONE_CYCLE, ckpt_path=tmp_path / f"step={at_step}.ckpt")
    assert rest == whole[at_step:]
    for a, b in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedules_with_milestones_apply_one_after_the_other(tmp_path: Path) -> None:
    warm_up = partial(LinearLR, start_factor=0.25, total_iters=-1)
    fall = partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=-1)
    expected = [0.25, 0.5, 0.75, *(1 - i / 9 for i in range(9))]
    for milestones in ((3,), (0.25,)):
        rates, _ = fit(tmp_path, (warm_up, fall), settings={"lr_milestones": milestones})
        assert rates == pytest.approx(expected)


def test_schedules_without_milestones_apply_at_the_same_time(tmp_path: Path) -> None:
    halved, falling = partial(ConstantLR, factor=0.5, total_iters=2), partial(ExponentialLR, gamma=0.9)
    rates, _ = fit(tmp_path, (halved, falling), max_epochs=1)
    assert rates == pytest.approx([0.5, 0.45, 0.81, 0.729])


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_lengths_are_counted_in_the_interval(tmp_path: Path, interval: Any) -> None:
    fall = partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=-1)
    rates, _ = fit(tmp_path, fall, settings={"lr_interval": interval})
    expected = [1 - i / 12 for i in range(12)] if interval == "step" else [1 - i // 4 / 3 for i in range(12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    ("factory", "monitor"),
    [
        (
            partial(ReduceLROnPlateau, mode="max", patience=0, factor=0.5, threshold=10, threshold_mode="abs"),
            "val/robust_acc",
        ),
        (
            partial(
                LightningPlateau,
                monitor="val/clean_acc",
                mode="max",
                patience=0,
                factor=0.5,
                threshold=10,
                threshold_mode="abs",
            ),
            None,
        ),
    ],
)
def test_a_plateau_schedule_advances_after_each_validation(
    tmp_path: Path, factory: Any, monitor: Any, interval: Any, every: int
) -> None:
    settings = {"lr_monitor": monitor, "lr_interval": interval}
    rates, _ = fit(
        tmp_path, factory, val=batches(10), settings=settings, max_epochs=4, check_val_every_n_epoch=every
    )  # fmt: skip
    # The first validation is the best so far; no later one is better by the threshold.
    assert rates[::4] == ([1, 1, 0.5, 0.25] if every == 1 else [1, 1, 1, 1])


PLATEAU = partial(ReduceLROnPlateau, mode="max")


@pytest.mark.parametrize(
    ("factory", "settings", "trainer", "message"),
    [
        (PLATEAU, {}, {}, r"needs the metric to watch: set model\.lr_monitor"),
        (
            PLATEAU,
            {"lr_monitor": "val/nope"},
            {},
            "watches val/nope, which is not measured; .* measures val/clean_acc, val",
        ),
        (PLATEAU, {"lr_monitor": "val/robust_acc"}, {"limit_val_batches": 0}, "but the run has no validation"),
        ((PLATEAU, ONE_CYCLE), {"lr_milestones": (5,)}, {}, "SequentialLR does not support `ReduceLROnPlateau`"),
        ((ONE_CYCLE, ONE_CYCLE), {"lr_milestones": (5, 7)}, {}, r"one fewer than the schedules in .*, 2; got 2"),
        ((ONE_CYCLE,) * 3, {"lr_milestones": (7, 5)}, {}, "must increase: .* got 7, 5"),
        ((ONE_CYCLE,) * 2, {"lr_milestones": (0,)}, {}, "must increase: .* got 0"),
        ((ONE_CYCLE,) * 2, {"lr_milestones": (2.5,)}, {}, "must increase: .* got 2.5"),
        (
            partial(ONE_CYCLE, total_steps=11),
            {},
            {},
            "has total_steps 11, but this run has 12 steps, and it can't",
        ),
        (ONE_CYCLE, {}, {"max_steps": 2, "max_epochs": 1}, "needs more than 2 steps to rise and fall"),
        (ONE_CYCLE, {"lr_interval": "epoch"}, {"max_epochs": -1, "max_steps": 5}, "needs the length of the run"),
    ],
)
def test_an_unsuitable_schedule_is_refused_before_training(
    tmp_path: Path, factory: Any, settings: Any, trainer: Any, message: str
) -> None:
    rates = Rates()
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        fit(tmp_path, factory, rates, val=batches(10), settings=settings, **trainer)
    assert rates.seen == []
    assert "\n" not in str(caught.value)


def test_a_schedule_resumed_in_a_longer_run_is_refused_before_training(tmp_path: Path) -> None:
    save, rates = ModelCheckpoint(tmp_path, filename="a"), Rates()
    fit(tmp_path, ONE_CYCLE, save)
    with pytest.raises(ValueError, match="has total_steps 12, but this run has 16 steps"):
        fit(tmp_path, ONE_CYCLE, rates, ckpt_path=tmp_path / "a.ckpt", max_epochs=4)
    assert rates.seen == []


@pytest.mark.parametrize(
    ("factory", "warned"),
    [
        (
            partial(ONE_CYCLE, total_steps=13),
            "has total_steps 13, but this run has 12 steps: the schedule does not reach",
        ),
        (partial(CosineAnnealingLR, T_max=11), "has T_max 11, .* the schedule ends before the run"),
        (partial(LinearLR, total_iters=20), "has total_iters 20"),
        (partial(LinearLR, total_iters=5), None),
        (partial(CosineAnnealingLR, T_max=12), None),
        (
            partial(MultiStepLR, milestones=[5, 12]),
            "MultiStepLR has milestones for a run of at least 13 steps, but this",
        ),
        (partial(MultiStepLR, milestones=[5, 11]), None),
        (partial(StepLR, step_size=12), "StepLR has step_size for a run of at least 13 steps, but this run has 12: ch"),
        (partial(StepLR, step_size=11), None),
        (partial(CosineAnnealingWarmRestarts, T_0=13), "T_0 for a run of at least 13 steps"),
        (partial(CosineAnnealingWarmRestarts, T_0=12), None),
        (partial(ReduceLROnPlateau, mode="min"), "an accuracy, with mode min"),
    ],
)
def test_a_schedule_of_another_length_than_the_run_gives_a_warning_in_one_line(
    tmp_path: Path, factory: Any, warned: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, factory, val=batches(10), settings={"lr_monitor": "val/robust_acc"})
    warnings = [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)]
    warnings = [text for text in warnings if "LR" in text or "lr_scheduler" in text]
    assert len(warnings) == (warned is not None)
    if warned:
        assert "\n" not in warnings[0]
        assert re.search(warned, warnings[0])


def test_a_loader_without_a_length_needs_max_steps(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(batches())

    data = DataLoader(Stream(), batch_size=None)
    with pytest.raises(ValueError, match=r"unknown until it ends: set trainer\.max_steps"):
        fit(tmp_path, ONE_CYCLE, data=data)
    rates, _ = fit(tmp_path, ONE_CYCLE, data=data, max_steps=9)
    assert rates == pytest.approx(read_rates(partial(ONE_CYCLE, total_steps=9), 9))


def test_schedules_on_the_command_line_are_saved_in_the_config(tmp_path: Path) -> None:
    warm_up: Any = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"total_iters": -1}}
    fall: Any = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": -1}}
    plateau: Any = {
        "class_path": "pytorch_lightning.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "val/robust_acc", "mode": "max"},
    }
    common = [
        "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--runs_dir={tmp_path}", "--model.lr_scheduler=null",
        "--test_after_fit=false", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2",
        "--data.batch_size=4", "--trainer.limit_val_batches=1", "--images.num_images=0", "--model.attack.steps=1",
        "--ramp.phases=null", "--trainer.max_epochs=1", "--model.lr_interval=step",
    ]  # fmt: skip
    main([*common, f"--model.lr_scheduler={json.dumps([warm_up, fall])}", "--model.lr_milestones=[0.5]"])
    main([*common, f"--model.lr_scheduler={json.dumps(plateau)}"])
    saved = [yaml.safe_load(file.read_text()) for file in sorted(tmp_path.rglob("config.yaml"))]
    schedules = [config["model"]["init_args"]["lr_scheduler"] for config in saved]
    for written, given in zip((*schedules[0], schedules[1]), (warm_up, fall, plateau), strict=True):
        assert written["class_path"] == given["class_path"]
        assert written["init_args"].items() >= given["init_args"].items()
