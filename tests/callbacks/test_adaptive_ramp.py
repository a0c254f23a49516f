"""Adaptive ramps, and ramps that are set back, in short trainings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR

from callbacks import EpsilonRampCallback, RunCheckpoint
from lightning_modules import AdversarialClassifier
from rampart.attacks import APGD, PGD, Attack
from rampart.data import TensorBatches
from rampart.schedules import AdaptiveRamp, Phase
from tests.callbacks.step_record import StepRecord

HALF = AdaptiveRamp(share=0.5)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptiveRamp, "LEAST_STEPS", 10)


class Shade(nn.Module):
    """A network that reads the mean brightness, which is easy to learn; or one that learns nothing."""

    def __init__(self, learns: bool = True) -> None:
        super().__init__()
        self.learns, self.layer = learns, nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        logits: Tensor = self.layer(torch.stack([mean, torch.ones_like(mean)], 1))
        return logits if self.learns else logits * 0


def loader() -> TensorBatches:
    labels = torch.arange(64) % 2
    images = (labels * 200 + 25).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return TensorBatches(images, labels, batch_size=8, shuffle=True)


def train(
    folder: Path,
    *callbacks: Callback,
    epochs: int = 25,
    network: nn.Module | None = None,
    attack: Attack | None = None,
    ckpt_path: Path | None = None,
    lr_scheduler: Any = None,
    **settings: Any,
) -> tuple[Any, StepRecord]:
    torch.manual_seed(0)
    module = AdversarialClassifier(
        network or Shade(),
        eps=0.2,
        attack=attack or PGD(steps=1),
        optimizer=lambda parameters: SGD(parameters, lr=3.0),
        lr_scheduler=lr_scheduler,
    )
    recorder = StepRecord()
    trainer = Trainer(
        default_root_dir=folder, callbacks=[*callbacks, recorder], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks), **settings,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return module, recorder


def test_eps_rises_when_the_network_has_learned_and_reaches_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, seen = train(tmp_path, EpsilonRampCallback(adaptive=HALF))
    assert seen.eps[:10] == [0.0] * 10  # nothing is measured yet
    assert seen.eps == sorted(seen.eps)
    assert seen.eps[-1] == 0.2
    rises = [after - before for before, after in zip(seen.eps, seen.eps[1:], strict=False) if after != before]
    assert rises == pytest.approx([0.2 / 100] * 100)  # half of 200 steps


def test_a_network_that_learns_nothing_ends_well_and_the_largest_eps_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _, seen = train(tmp_path, EpsilonRampCallback(adaptive=HALF), network=Shade(learns=False))
    assert set(seen.eps) == {0.0}
    assert "the largest eps of this run is 0, below its target 0.2: the network could not follow" in caplog.text


def test_a_ramp_that_begins_in_a_resumed_run_leaves_a_final_part_of_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = RunCheckpoint(dirpath=tmp_path, save_last=True, monitor=None)
    train(tmp_path, EpsilonRampCallback(), checkpoint, max_steps=96)
    ramp = EpsilonRampCallback(adaptive=AdaptiveRamp(share=0.8))
    with caplog.at_level("INFO"):
        _, seen = train(tmp_path, ramp, ckpt_path=tmp_path / "last.ckpt")
    assert len(seen.eps) == 104
    assert seen.eps[0] == 0
    assert 0 < seen.eps[83] < 0.2
    assert set(seen.eps[84:]) == {seen.eps[84]}
    assert "below its target 0.2: the end of the run was near at step 180" in caplog.text


def test_a_run_that_ends_while_eps_rises_reports_it_and_keeps_rising_when_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class End(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 48

    checkpoint = RunCheckpoint(dirpath=tmp_path, save_last=True, monitor=None)
    with caplog.at_level("INFO"):
        train(tmp_path, EpsilonRampCallback(adaptive=HALF), checkpoint, End())
        assert "below its target 0.2: the end of the run was near at step 48" in caplog.text
    _, seen = train(tmp_path, EpsilonRampCallback(adaptive=HALF), ckpt_path=tmp_path / "last.ckpt")
    assert seen.eps[-1] == 0.2


def test_settings_change_the_ramp_and_phases_its_attack(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.15, epochs=25, steps=2),), adaptive=AdaptiveRamp(share=0.25))
    _, seen = train(tmp_path, ramp)
    assert set(seen.steps) == {2}
    assert seen.eps[-1] == 0.15  # the phases' eps is smaller than the limit
    rises = [after - before for before, after in zip(seen.eps, seen.eps[1:], strict=False) if after != before]
    assert max(rises) == pytest.approx(0.2 / 50)


class Forget(Callback):
    """Let the network give constant outputs for some steps."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.network.learns = not 60 <= trainer.global_step < 80


def test_phases_above_the_eps_of_the_module_rise_to_their_end(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.25, epochs=25),), adaptive=HALF)
    _, seen = train(tmp_path, ramp)
    rises = [after - before for before, after in zip(seen.eps, seen.eps[1:], strict=False)]
    assert seen.eps[-1] == 0.25
    assert max(rises) == pytest.approx(0.25 / 100)


def test_the_learning_rate_can_wait_with_eps_and_ends_with_the_run(tmp_path: Path) -> None:
    def lr_scheduler(optimizer: Any) -> LinearLR:
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=-1)

    lr_scheduler.__name__ = "schedule"
    ramps = [EpsilonRampCallback(adaptive=AdaptiveRamp(share=0.5, lr_waits=waits)) for waits in (False, True)]
    plain, waits = (train(tmp_path, ramp, Forget(), lr_scheduler=lr_scheduler)[1] for ramp in ramps)
    assert plain.lr[1] < plain.lr[0]
    assert waits.lr[:60] == plain.lr[:60]  # eps begins to rise in these
    assert len({*waits.lr[60:100]}) < len({*plain.lr[60:100]}) == 40
    assert waits.lr == sorted(waits.lr, reverse=True)
    assert waits.lr[-1] == pytest.approx(plain.lr[-1], abs=0.03)


def test_a_warm_up_of_the_learning_rate_does_not_wait_for_the_network_that_it_has_to_teach(tmp_path: Path) -> None:
    def warm_up(optimizer: Any) -> LinearLR:
        return LinearLR(optimizer, start_factor=1e-9, end_factor=1.0, total_iters=50)

    ramp = EpsilonRampCallback(adaptive=AdaptiveRamp(share=0.25, lr_waits=True))
    _, seen = train(tmp_path, ramp, lr_scheduler=warm_up)
    assert seen.eps[-1] == 0.2


class SetBack(Callback):
    """Set the ramp back once."""

    def __init__(self, ramp: EpsilonRampCallback, at: int, time: float, eps: float, more_steps: int = 0) -> None:
        self.ramp, self.at, self.arguments = ramp, at, (time, eps, more_steps)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            self.ramp.set_back(trainer, *self.arguments)


def test_a_ramp_that_is_set_back_rises_again_from_a_lower_eps(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.2, start_eps=0.0, epochs=10), Phase(0.2, epochs=15)))
    _, seen = train(tmp_path, ramp, SetBack(ramp, 96, 64, 0.05, more_steps=1))
    assert seen.eps[95] == 0.2
    assert seen.eps[96] == 0.05
    assert set(seen.steps[:96]) == {1}
    assert set(seen.steps[96:]) == {2}
    assert seen.eps[96:] == sorted(seen.eps[96:])
    assert seen.eps[-1] == 0.2


def test_schedules_continue_from_the_earlier_time_and_end_with_the_run(tmp_path: Path) -> None:
    def lr_scheduler(optimizer: Any) -> LinearLR:
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=-1)

    class Restore(SetBack):
        """Set the ramp back, and the schedule of the learning rate with it."""

        kept: dict[str, Any]

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == self.at:
                trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.kept)
                for group in trainer.optimizers[0].param_groups:
                    group["lr"] = self.kept["_last_lr"][0]
            elif trainer.global_step == 40:
                self.kept = dict(trainer.lr_scheduler_configs[0].scheduler.state_dict())
            super().on_train_batch_end(trainer)

    ramp = EpsilonRampCallback()
    _, seen = train(tmp_path, ramp, Restore(ramp, 120, 40, 0.0), lr_scheduler=lr_scheduler)
    assert seen.lr[120] == pytest.approx(seen.lr[40])
    after = seen.lr[120:]
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("stop", [13, 30, 77])
@pytest.mark.parametrize("set_back", [False, True])
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(tmp_path: Path, stop: int, set_back: bool) -> None:
    def make() -> list[Callback]:
        ramp = EpsilonRampCallback(adaptive=AdaptiveRamp(share=0.5, lr_waits=True))
        return [ramp, *([SetBack(ramp, 40, 20, 0.01)] if set_back else [])]

    def lr_scheduler(optimizer: Any) -> LinearLR:
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=-1)

    whole, seen = train(tmp_path, *make(), lr_scheduler=lr_scheduler, accumulate_grad_batches=1)
    checkpoint = RunCheckpoint(dirpath=tmp_path / "kept", save_last=True, monitor=None, every_n_train_steps=stop)

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, *make(), checkpoint, Stop(), lr_scheduler=lr_scheduler)
    resumed, after = train(
        tmp_path, *make(), ckpt_path=tmp_path / "kept" / "last.ckpt", lr_scheduler=lr_scheduler
    )  # fmt: skip
    assert after.eps == seen.eps[stop:]
    assert after.lr == seen.lr[stop:]
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_accumulated_batches_share_one_eps_and_one_wait(tmp_path: Path) -> None:
    _, seen = train(tmp_path, EpsilonRampCallback(adaptive=HALF), accumulate_grad_batches=2, epochs=50)
    assert len(seen.eps) == 200
    assert seen.eps[:10] == [0.0] * 10
    assert seen.eps[-1] == 0.2


def test_an_adaptive_ramp_needs_a_run_of_known_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ramp.adaptive needs the length of the run: set trainer.max_epochs"):
        train(tmp_path, EpsilonRampCallback(adaptive=HALF), epochs=-1, max_time="00:00:01:00")


def test_only_attacks_with_a_number_of_steps_get_more(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback()
    train(tmp_path, ramp, epochs=1)
    assert ramp.can_strengthen()
    train(tmp_path, ramp, epochs=1, attack=PGD(steps="paper", step_size=0.1))
    assert not ramp.can_strengthen()
    train(tmp_path, ramp, epochs=1, attack=APGD(steps=2))
    assert ramp.can_strengthen() is hasattr(APGD, "with_settings")
