import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from callbacks import EpsilonRampCallback
from lightning_modules import AdversarialClassifier, MNISTClassifier
from rampart.attacks import APGD, PGD, Attack, Square
from rampart.data import TensorBatches
from rampart.networks import MNISTCNN
from rampart.objectives import AdversarialTraining
from rampart.schedules import Phase
from tests.conftest import small_network


@pytest.mark.parametrize(
    ("phases", "message"),
    [([], "at least one phase"), ([Phase(0.1, epochs=1), Phase(0.1, train_steps=1)], "all in train_steps; got both")],
)
def test_wrong_lists_of_phases_raise(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonRampCallback(tuple(phases))


class Recorder(Callback):
    """Record the global step, eps and attack steps of each training batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.seen.append((trainer.global_step, pl_module.eps, pl_module.attack.steps))


def loader(n: int = 40) -> TensorBatches:
    images = torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(n) % 10, batch_size=10, shuffle=True)


def run(
    folder: Path,
    ramp: EpsilonRampCallback,
    module: LightningModule | None = None,
    ckpt_path: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    **settings: Any,
) -> tuple[Any, Recorder]:
    recorder = Recorder()
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[ramp, *callbacks, recorder],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        **settings,
    )
    module = module or AdversarialClassifier(small_network(), eps=0.4, attack=PGD(steps=2))
    trainer.fit(module, train_dataloaders=loader(), ckpt_path=ckpt_path)
    return module, recorder


def test_training_attacks_follow_the_phases(tmp_path: Path) -> None:
    phases = [Phase(0.1, epochs=1), Phase(0.4, start_eps=0.1, epochs=1, steps=3, step_size=0.2)]
    module, recorder = run(tmp_path, EpsilonRampCallback(tuple(phases)), max_epochs=2)
    assert [(eps, steps) for _, eps, steps in recorder.seen] == [(0.1, 2)] * 4 + [
        (pytest.approx(eps), 3) for eps in (0.1, 0.2, 0.3, 0.4)
    ]
    assert module.target_eps == 0.4


def test_accumulated_batches_share_one_eps(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback((Phase(0.3, start_eps=0, epochs=2),))
    _, recorder = run(tmp_path, ramp, max_epochs=2, accumulate_grad_batches=2)
    assert [eps for _, eps, _ in recorder.seen] == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_without_phases_eps_is_the_modules(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, EpsilonRampCallback(), max_epochs=1)
    assert {eps for _, eps, _ in recorder.seen} == {0.4}


@pytest.mark.parametrize(
    "phases", [[Phase(0.4, start_eps=0, epochs=2), Phase(0.4, epochs=1)], [Phase(0.4, 0, train_steps=12)]]
)
@pytest.mark.parametrize("at_step", [3, 4, 6])
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(tmp_path: Path, at_step: int, phases: list[Phase]) -> None:
    """Resumed within an epoch and at its end: eps, data order, attacks and weights are the same."""
    weights = tmp_path / "weights.pth"

    def module() -> AdversarialClassifier:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        torch.save(network.state_dict(), weights)
        return AdversarialClassifier(network, eps=0.4, attack=PGD(steps=2))

    def ramp() -> EpsilonRampCallback:
        return EpsilonRampCallback(tuple(phases), init_from=str(weights))

    save = ModelCheckpoint(tmp_path / "a", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, recorder = run(tmp_path, ramp(), module(), callbacks=(save,), max_epochs=3)
    fresh = module()
    weights.unlink()  # A resumed run does not read it.
    resumed, rest = run(tmp_path, ramp(), fresh, tmp_path / "a" / f"step={at_step}.ckpt", max_epochs=3)
    assert len(rest.seen) == 12 - at_step
    assert rest.seen == recorder.seen[at_step:]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_init_from_loads_weights_and_prints_a_line(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    source = MNISTCNN()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = {}

    class Inspect(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            loaded["weight"] = pl_module.network.conv1.weight.clone()

    ramp = EpsilonRampCallback(init_from=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO"):
        run(tmp_path, ramp, MNISTClassifier(attack=PGD(steps=1)), callbacks=(Inspect(),), max_steps=1, max_epochs=1)
    assert torch.equal(loaded["weight"], source.conv1.weight)
    assert "Loaded 8 tensors" in caplog.text + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("settings", "phases", "message"),
    [
        ({"max_epochs": 4}, [Phase(0.1, epochs=2), Phase(0.4, epochs=1)], r"2 \+ 1 = 3 epochs, the run lasts 4"),
        ({"max_epochs": 2}, [Phase(0.4, train_steps=7)], "7 optimizer steps, the run lasts 8"),
        ({"max_steps": 9, "max_epochs": 5}, [Phase(0.4, train_steps=8)], "8 optimizer steps, the run lasts 9"),
        ({"max_epochs": 3, "max_steps": 5}, [Phase(0.1, epochs=3)], "need a run in epochs, got trainer.max_steps 5"),
        ({"max_steps": 5}, [Phase(0.1, epochs=3)], "need a run in epochs, got trainer.max_steps 5"),
        ({"max_epochs": 1}, [Phase(1.5, epochs=1)], r"end_eps must be in \[0, 1\]"),
        ({"max_epochs": 1}, [Phase(0.4, start_eps=2, epochs=1)], r"start_eps must be in \[0, 1\]"),
    ],
)
def test_phases_that_do_not_fit_the_run_raise(
    tmp_path: Path, settings: dict[str, Any], phases: list[Phase], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, EpsilonRampCallback(tuple(phases)), **settings)


def test_a_module_without_the_attributes_raises(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sets `eps`, which LightningModule lacks"):
        EpsilonRampCallback().setup(Trainer(logger=False), LightningModule(), "fit")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint not found"):
        run(tmp_path, EpsilonRampCallback(init_from=str(tmp_path / "w.pth")), max_epochs=1)


RAMP = (Phase(0.1, epochs=1, steps=3), Phase(0.4, start_eps=0.1, epochs=1, steps=5, step_size=0.2))


class Picky(AdversarialTraining):
    """An objective that rejects attacks with 13 steps."""

    def check(self, attack: Any, network: nn.Module) -> None:
        if attack.steps == 13:
            raise ValueError("not 13 steps")


class Stop(Callback):
    """Raise an error in the second epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def test_a_second_fit_starts_like_the_first(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback(RAMP)
    module, first = run(tmp_path, ramp, max_epochs=2)
    assert (module.eps, module.attack) == (0.4, PGD(steps=2))
    Trainer(logger=False, accelerator="cpu").test(module, loader(), verbose=False)
    _, second = run(tmp_path, ramp, module, max_epochs=2)
    assert [seen[1:] for seen in second.seen] == [seen[1:] for seen in first.seen]
    _, plain = run(tmp_path, EpsilonRampCallback(), module, max_epochs=1)
    assert [seen[1:] for seen in plain.seen] == [(0.4, 2)] * 4


@pytest.mark.parametrize("error", [ValueError("stopped"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_restores_the_modules_settings(tmp_path: Path, error: BaseException) -> None:
    module = AdversarialClassifier(small_network(), eps=0.2, attack=PGD(steps=2))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((ValueError, SystemExit)):
        run(tmp_path, EpsilonRampCallback(RAMP), module, callbacks=(Stop(error),), max_epochs=2)
    signal.signal(signal.SIGINT, handler)  # Lightning replaces the handler at an interruption.
    assert (module.eps, module.attack) == (0.2, PGD(steps=2))


def test_two_ramps_restore_the_modules_settings(tmp_path: Path) -> None:
    one, two = EpsilonRampCallback((Phase(0.3, epochs=1, steps=4),)), EpsilonRampCallback((Phase(0.1, epochs=1),))
    module, _ = run(tmp_path, one, callbacks=(two,), max_epochs=1)
    assert (module.eps, module.attack) == (0.4, PGD(steps=2))


def test_a_second_fit_of_one_trainer_keeps_the_trained_weights(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), eps=0.1, attack=PGD(steps=1))
    begun: list[Tensor] = []

    class Inspect(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            begun.append(pl_module.network[1].weight.detach().clone())

    trainer = Trainer(
        logger=False, accelerator="cpu", max_epochs=1, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[EpsilonRampCallback(init_from=str(tmp_path / "w.pth")), Inspect()],
    )  # fmt: skip
    trainer.fit(module, loader())
    trained = module.network.state_dict()["1.weight"].clone()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert torch.equal(begun[0], source.state_dict()["1.weight"])
    assert torch.equal(begun[1], trained)


class Stream(IterableDataset[Any]):
    """40 images in batches of 10, with no length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader())


def stream(folder: Path, phases: tuple[Phase, ...], **settings: Any) -> list[tuple[float, int]]:
    recorder = Recorder()
    trainer = Trainer(
        default_root_dir=folder, logger=False, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, callbacks=[EpsilonRampCallback(phases), recorder], **settings,
    )  # fmt: skip
    module = AdversarialClassifier(small_network(), eps=0.4, attack=PGD(steps=1))
    trainer.fit(module, DataLoader(Stream(), batch_size=None))
    return [(round(eps, 6), steps) for _, eps, steps in recorder.seen]


def test_loaders_without_a_length_follow_the_phases(tmp_path: Path) -> None:
    by_epoch = (Phase(0.3, start_eps=0.1, epochs=3, interval="epoch"),)
    assert stream(tmp_path, by_epoch, max_epochs=3) == [(0.1, 1)] * 4 + [(0.2, 1)] * 4 + [(0.3, 1)] * 4
    constant = (Phase(0.1, epochs=1), Phase(0.2, epochs=1, steps=2))
    assert stream(tmp_path, constant, max_epochs=2) == [(0.1, 1)] * 4 + [(0.2, 2)] * 4
    by_step = (Phase(0.4, start_eps=0, train_steps=5),)
    assert stream(tmp_path, by_step, max_steps=5) == [(0, 1), (0.1, 1), (0.2, 1), (0.3, 1), (0.4, 1)]
    limited = (Phase(0.3, start_eps=0, epochs=2),)
    assert stream(tmp_path, limited, max_epochs=2, limit_train_batches=2) == [(0, 1), (0.1, 1), (0.2, 1), (0.3, 1)]


@pytest.mark.parametrize(
    ("phase", "settings", "message"),
    [
        (Phase(0.4, start_eps=0, epochs=2), {"max_epochs": 2}, "need a data loader with a length: set interval: epoch"),
        (Phase(0.4, train_steps=7), {"max_epochs": 2}, "no known end; .* set trainer.max_steps to 7"),
        (Phase(0.4, epochs=2), {"max_epochs": -1}, "no known end; .* set trainer.max_epochs to 2"),
    ],
)
def test_phases_that_need_a_length_raise_without_one(
    tmp_path: Path, phase: Phase, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        stream(tmp_path, (phase,), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"fast_dev_run": 3}, {"max_epochs": 2, "overfit_batches": 2}, {"max_time": "00:01:00:00", "max_epochs": 2}],
)
def test_special_trainer_settings_follow_the_phases(tmp_path: Path, settings: dict[str, Any]) -> None:
    _, recorder = run(tmp_path, EpsilonRampCallback((Phase(0.3, start_eps=0.1, epochs=2),)), **settings)
    assert recorder.seen[0][1] == 0.1
    if "fast_dev_run" not in settings:
        assert recorder.seen[-1][1] == 0.3
        with pytest.raises(ValueError, match="3 epochs, the run lasts 2"):
            run(tmp_path, EpsilonRampCallback((Phase(0.3, epochs=3),)), **settings)


@pytest.mark.parametrize(
    ("attack", "objective", "phase", "message"),
    [
        (APGD(), None, Phase(0.4, epochs=1, step_size=0.1), "APGD has no step_size to set"),
        (Square(), None, Phase(0.4, epochs=1, steps=5), "Square has no steps to set"),
        (PGD(), Picky(), Phase(0.4, epochs=1, steps=13), "not 13 steps"),
    ],
)
def test_a_phase_that_does_not_fit_attack_or_objective_raises_at_setup(
    tmp_path: Path, attack: Attack, objective: Any, phase: Phase, message: str
) -> None:
    module = AdversarialClassifier(small_network(), eps=0.4, attack=attack, objective=objective)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(tmp_path, EpsilonRampCallback((phase,)), module, max_epochs=1)
    assert "\n" not in str(caught.value)


def test_accumulating_zero_batches_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches must be at least 1, got 0"):
        run(tmp_path, EpsilonRampCallback(RAMP), max_epochs=2, accumulate_grad_batches=0)
