from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from callbacks import CollapseGuard, EpsilonRampCallback
from callbacks.step_measurement import StepMeasurement
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.kernels import Execution
from rampart.objectives import AWP, IBP, MTLIBP, TRADES, AdversarialTraining
from rampart.schedules import Phase
from tests.callbacks.guarded_training import Head, Kill, read_events, stripes, train


def test_warn_reports_a_collapse_once_and_training_goes_on(tmp_path: Path) -> None:
    guard = CollapseGuard(every_n_steps=2)
    module = train(tmp_path, guard, callbacks=(Kill(40),), max_steps=80)
    events = read_events(tmp_path)
    assert [(event["kind"], event["step"]) for event in events] == [("constant output", 48)]
    assert module.trainer.global_step == 80
    for part in ("had learned", "eps 0.1", "predicted as class", "ramp.adaptive", "--guard.action stop"):
        assert part in events[0]["text"]


def test_stop_ends_the_run_with_the_signs_and_what_to_change(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=20, save_top_k=-1)
    guard = CollapseGuard("stop", every_n_steps=2)
    with pytest.raises(ValueError, match=r"constant output at step 48, eps 0\.1: .* lower the learning rate"):
        train(tmp_path, guard, callbacks=(Kill(40), saved), max_steps=80)
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    assert [event["action"] for event in read_events(tmp_path)] == ["stop"]


def test_a_network_that_never_learns_is_reported_after_the_grace_period(tmp_path: Path) -> None:
    guard = CollapseGuard(every_n_steps=2, grace_steps=30)
    train(tmp_path, guard, callbacks=(Kill(2),), max_steps=60)
    assert [event["step"] for event in read_events(tmp_path)] == [32]


IMBALANCED = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1] * 8)

HEALTHY: dict[str, Callable[[], dict[str, Any]]] = {
    "PGD": dict,
    "slow start": lambda: {"lr": 1e-6},
    "one class": lambda: {"batches": stripes(labels=torch.zeros(64, dtype=torch.int64))},
    "two classes": lambda: {"batches": stripes(2), "network": Head(classes=2)},
    "imbalanced classes": lambda: {"batches": stripes(labels=IMBALANCED), "network": Head(classes=2)},
    "label smoothing": lambda: {"objective": AdversarialTraining(nn.CrossEntropyLoss(label_smoothing=0.3))},
    "TRADES": lambda: {"objective": TRADES()},
    "AWP": lambda: {"objective": AWP()},
    "MTL-IBP": lambda: {"objective": MTLIBP(weight=0.1)},
    "MTL-IBP with BatchNorm": lambda: {"objective": MTLIBP(weight=0.1), "network": Head(batchnorm=True)},
    "IBP": lambda: {"objective": IBP(target_eps=0.02), "eps": 0.02},
    "TRADES with BatchNorm": lambda: {"objective": TRADES(), "network": Head(batchnorm=True)},
    "L2": lambda: {"attack": PGD(norm="L2", steps=2)},
    "accumulation and clipping": lambda: {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "bfloat16": lambda: {"precision": "bf16-mixed"},
}
UNALIGNED = {"IBP", "MTL-IBP with BatchNorm", "slow start"}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_unchanged_and_raises_no_alarm(name: str, tmp_path: Path) -> None:
    guard = CollapseGuard("stop", every_n_steps=2, grace_steps=20)
    watched = train(tmp_path, guard, **HEALTHY[name](), max_steps=40)
    plain = train(tmp_path, None, **HEALTHY[name](), max_steps=40)
    for ours, theirs in zip(watched.network.state_dict().values(), plain.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    alignments = guard.detector.state_dict()["overfitting"]["alignments"]
    assert bool(alignments) == (name not in UNALIGNED)
    assert all(-1 <= value <= 1.0001 for value in alignments)
    assert not read_events(tmp_path)


def test_a_resumed_run_decides_like_an_uninterrupted_one(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    saved = ModelCheckpoint(whole, every_n_train_steps=15, save_top_k=-1, filename="{step}")
    first = CollapseGuard(every_n_steps=2)
    module = train(whole, first, callbacks=(Kill(40), saved), max_steps=75)
    for step in (15, 45, 60):  # before, in and after the finding
        (folder := tmp_path / f"from {step}").mkdir()
        second = CollapseGuard(every_n_steps=2)
        path = whole / f"step={step}.ckpt"
        resumed = train(folder, second, callbacks=(Kill(40),), max_steps=75, ckpt_path=path)
        assert second.state_dict() == first.state_dict()
        assert read_events(folder) == read_events(whole)
        for ours, theirs in zip(resumed.network.parameters(), module.network.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_resumed_run_removes_events_that_it_has_not_reached(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=15, save_top_k=-1, filename="{step}")
    train(tmp_path, CollapseGuard(every_n_steps=2), callbacks=(Kill(40), saved), max_steps=60)
    assert len(read_events(tmp_path)) == 1
    train(tmp_path, CollapseGuard(every_n_steps=2), max_steps=60, ckpt_path=tmp_path / "step=15.ckpt")
    assert not read_events(tmp_path)


def test_a_new_run_without_events_removes_no_file(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("{}\n")
    train(tmp_path, CollapseGuard(), max_steps=5)
    assert read_events(tmp_path) == [{}]


def test_measurements_are_curves_at_the_interval_of_the_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    train(tmp_path, CollapseGuard(every_n_steps=2), logger=logger, log_every_n_steps=10, max_steps=33)
    logger.save()
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    measured = [row for row in rows if row["guard/information"]]
    assert [row["step"] for row in measured] == ["0", "10", "20", "30"]
    assert all(row["guard/grad_norm"] and row["guard/alignment"] and row["guard/spread"] for row in measured)


def test_every_nth_optimizer_step_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    finish = StepMeasurement.finish

    def record(self: StepMeasurement, trainer: Trainer, module: Any) -> Any:
        result = finish(self, trainer, module)
        measured.extend([trainer.global_step] if result is not None else [])
        return result

    monkeypatch.setattr(StepMeasurement, "finish", record)
    train(tmp_path, CollapseGuard(every_n_steps=5), max_steps=21, accumulate_grad_batches=3)
    assert measured == [0, 5, 10, 15, 20]


def test_none_measures_nothing(tmp_path: Path) -> None:
    guard = CollapseGuard("none", every_n_steps=1)
    train(tmp_path, guard, callbacks=(Kill(2),))
    assert guard.state_dict()["pending"] is None
    assert not read_events(tmp_path)


@pytest.mark.parametrize("settings", [{"fast_dev_run": 30}, {"barebones": True}])
def test_short_and_bare_runs_leave_no_files(settings: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, CollapseGuard(every_n_steps=1, grace_steps=5), callbacks=(Kill(2),), max_steps=30, **settings)
    assert bool(read_events(tmp_path)) == ("barebones" in settings)


def test_compiled_networks_have_no_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rampart.attacks.logits.call_compiled", lambda network, images: network(images))
    monkeypatch.setattr(AdversarialClassifier, "execution", Execution(compile=True))
    guard = CollapseGuard(every_n_steps=2)
    train(tmp_path, guard)
    assert guard.detector.state_dict()["overfitting"]["alignments"] == []
    assert guard.detector.healthy


class Plain(LightningModule):
    """A module of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Head()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0].float()), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_without_values_of_its_steps_is_refused_or_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[CollapseGuard()], max_epochs=1, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(TypeError, match="CollapseGuard reads `last_step`, which Plain lacks"):
        trainer.fit(Plain(), stripes())
    module: Any = Plain()
    module.last_step = None
    with pytest.warns(UserWarning, match="guard is off: training_step of Plain does not set `last_step`"):
        trainer.fit(module, stripes())


def test_a_ramp_and_the_guard_work_together(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.1, start_eps=0.0, train_steps=40),))
    guard = CollapseGuard("stop", every_n_steps=2)
    train(tmp_path, guard, callbacks=(ramp,), max_steps=40)
    assert len(guard.detector.state_dict()["overfitting"]["alignments"]) > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "halt"}, "guard.action must be none, warn, stop or recover, got 'halt'"),
        ({"every_n_steps": 0}, "guard.every_n_steps must be at least 1, got 0"),
        ({"grace_steps": -1}, "guard.grace_steps must be 0 or more, got -1"),
        ({"check_share": 1.5}, r"guard.check_share must be in \[0, 1\], got 1.5"),
        ({"patience_steps": -2}, "guard.patience_steps must be 0 or more, got -2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollapseGuard(**settings)
