"""Trainings that collapse and are recovered."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR

from callbacks import AveragedWeights, CollapseGuard, EpsilonRampCallback, RunCheckpoint
from commands.messages import LONGEST
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.collapse import Alarm, CollapseDetector
from rampart.data import TensorBatches
from rampart.files import load_weights
from rampart.schedules import AdaptiveRamp, Phase
from tests.callbacks.step_record import StepRecord


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptiveRamp, "LEAST_STEPS", 10)


class Shade(nn.Module):
    """A network that reads the mean brightness of an image; at negative weights its units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        nn.init.uniform_(self.layer.weight, 0, 1)

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        logits: Tensor = self.last(self.layer(torch.stack([mean, 1 - mean], 1)).relu())
        return logits


class Record(StepRecord):
    """Record the weights after each batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append(pl_module.network.layer.weight.detach().clone())


class Plant(Callback):
    """Set the weights of the first layer to a value before some steps: -100 makes the output constant, for ever."""

    def __init__(self, at: tuple[int, ...], value: float = -100.0) -> None:
        self.at, self.value = at, value

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step in self.at:
            with torch.no_grad():
                pl_module.network.layer.weight.fill_(self.value)


def halve_rate(optimizer: Any) -> LinearLR:
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.5, total_iters=-1)


def train(
    folder: Path,
    *callbacks: Callback,
    guard: CollapseGuard | None = None,
    ramp: EpsilonRampCallback | None = None,
    epochs: int = 50,
    **settings: Any,
) -> tuple[Any, Record]:
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = (labels * 100 + 75).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    loader = TensorBatches(images, labels, batch_size=8, shuffle=True)
    module = AdversarialClassifier(
        Shade(), eps=0.1, attack=PGD(steps=1), lr_scheduler=halve_rate,
        optimizer=lambda parameters: SGD(parameters, lr=0.3, momentum=0.5),
    )  # fmt: skip
    record = Record()
    trainer = Trainer(
        default_root_dir=folder, logger=False, accelerator="cpu", max_epochs=epochs, enable_progress_bar=False,
        callbacks=[ramp or EpsilonRampCallback(), guard or make_guard(), *callbacks, record],
        enable_model_summary=False, enable_checkpointing=any(isinstance(each, RunCheckpoint) for each in callbacks),
    )  # fmt: skip
    trainer.fit(module, loader, **settings)
    return module, record


def make_guard(recoveries: int = 5) -> CollapseGuard:
    return CollapseGuard("recover", every_n_steps=2, grace_steps=20, recoveries=recoveries)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Always(CollapseDetector):
    """Report one kind of collapse after some measurements."""

    def __init__(self, kind: Any, at: int) -> None:
        super().__init__()
        self.kind, self.at, self.seen = kind, at, 0

    def update(self, signs: Any, step: int) -> list[Alarm]:
        super().update(signs, step)
        self.seen += 1
        return [Alarm(self.kind, step, "planted", "")] if self.seen == self.at else []


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_training_that_has_learned_returns_to_healthy_weights_and_rises_again(tmp_path: Path) -> None:
    _, seen = train(tmp_path, Plant((200,)))
    (event,) = events(tmp_path)
    assert "recovery 1: back to the weights of step" in event["text"]
    back = next(i for i in range(200, 400) if seen.eps[i] < 0.1)
    assert back - 200 <= 20
    assert seen.eps[back] == pytest.approx(0.05)
    assert seen.eps[back:] == sorted(seen.eps[back:])
    assert seen.eps[-1] == 0.1
    kept = int(event["text"].split("weights of step ")[1].split(",")[0])
    assert kept <= 150  # it was healthy for 50 steps after that
    assert torch.equal(seen.weights[back - 1], seen.weights[kept - 1])
    assert seen.lr[back] == pytest.approx(seen.lr[kept])
    assert seen.lr[-1] == pytest.approx(0.15, abs=0.003)  # the schedule ends with the run


def test_a_network_that_never_learned_starts_again_from_its_initial_weights_at_eps_0(tmp_path: Path) -> None:
    _, seen = train(tmp_path, Plant((1,)))
    (event,) = events(tmp_path)
    assert "back to the weights of step 0, eps rises from 0" in event["text"]
    assert seen.eps[0] == 0.1
    assert 0.0 in seen.eps
    assert seen.eps[-1] == 0.1


def test_weights_that_become_nan_are_recovered_at_once(tmp_path: Path) -> None:
    module, seen = train(tmp_path, Plant((200,), float("nan")))
    (event,) = events(tmp_path)
    assert event["kind"] == "non-finite logits"
    assert event["step"] == 200
    assert seen.eps[201] == pytest.approx(0.05)
    assert all(weight.isfinite().all() for weight in module.parameters())
    assert module.ends_at_nonfinite_loss


def test_overfitting_adds_an_attack_step_and_keeps_eps(tmp_path: Path) -> None:
    guard = make_guard()
    guard.detector = Always("catastrophic overfitting", 120)
    _, seen = train(tmp_path, guard=guard)
    assert seen.steps[0] == 1
    assert seen.steps[-1] == 2
    assert set(seen.eps) == {0.1}
    assert "each attack makes one step more" in events(tmp_path)[0]["text"]


def test_a_second_collapse_of_the_same_state_lowers_eps_further(tmp_path: Path) -> None:
    _, seen = train(tmp_path, Plant((200, 225)))
    assert len(events(tmp_path)) == 2
    assert min(seen.eps) == pytest.approx(0.025)


def test_too_many_recoveries_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^training stopped after 1 recoveries \(guard.recoveries\): ") as caught:
        train(tmp_path, Plant((200, 225)), guard=make_guard(recoveries=1))
    assert len(str(caught.value)) < LONGEST - 30  # Longer messages are cut; other eps and steps have more digits.


def test_a_recovery_needs_a_ramp(tmp_path: Path) -> None:
    module = AdversarialClassifier(Shade(), eps=0.1)
    trainer = Trainer(logger=False, accelerator="cpu", max_epochs=1, callbacks=[make_guard()])
    with pytest.raises(TypeError, match=r"guard.action recover sets an EpsilonRampCallback back"):
        trainer.fit(module, TensorBatches(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8).long(), 8))


def test_healthy_states_are_no_weights_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(dirpath=tmp_path, save_last=True, monitor=None, every_n_train_steps=120)
    train(tmp_path, checkpoint, epochs=15)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["CollapseGuard"]["recovery"]["latest"] is not None
    report = str(load_weights(Shade(), tmp_path / "last.ckpt"))
    assert "found under key state_dict" in report
    assert "left out" not in report


def test_phases_rise_again_more_slowly(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.1, start_eps=0, epochs=15), Phase(0.1, epochs=35)))
    _, seen = train(tmp_path, Plant((100,)), ramp=ramp)
    back = next(i for i in range(100, 400) if seen.eps[i] < seen.eps[i - 1])
    rise = [after - before for before, after in zip(seen.eps, seen.eps[1:], strict=False)]
    assert max(rise[back:]) < max(rise[:back])
    assert seen.eps[-1] == 0.1


def test_averaged_weights_return_too(tmp_path: Path) -> None:
    average = AveragedWeights(decay=0.9)
    module, _ = train(tmp_path, average, Plant((390,), float("nan")))
    assert all(weight.isfinite().all() for weight in module.parameters())


@pytest.mark.parametrize("stop", [203, 300])
@pytest.mark.parametrize("at", [(200,), (200, 225), (1,)])
def test_a_run_resumed_around_a_recovery_is_bit_equal_to_the_uninterrupted_one(
    tmp_path: Path, stop: int, at: tuple[int, ...]
) -> None:
    whole, seen = train(tmp_path / "whole", Plant(at))
    checkpoint = RunCheckpoint(dirpath=tmp_path / "kept", save_last=True, monitor=None, every_n_train_steps=stop)

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "first", checkpoint, Stop(), Plant(at))
    resumed, after = train(tmp_path / "first", Plant(at), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert after.eps == seen.eps[stop:]
    assert after.lr == seen.lr[stop:]
    assert events(tmp_path / "first") == events(tmp_path / "whole")
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
