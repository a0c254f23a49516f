import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from callbacks import EpsilonRampCallback, Phase
from callbacks.epsilon_ramp import eps_schedule
from lightning_modules import AdversarialClassifier, MNISTClassifier
from rampart.attacks import PGD, Attack, MixedPGD, Square
from rampart.data.tensor_batches import TensorBatches
from rampart.networks import MNISTCNN
from rampart.objectives import AdversarialTraining
from tests.conftest import small_network

IAT = [Phase(epochs=40, start_eps=0.01, end_eps=0.4, interval="epoch")]
EXTENDED = [Phase(epochs=30, end_eps=0.3), Phase(epochs=5, end_eps=0.4, steps=200, step_size=0.005)]


def eps_at(phases: list[Phase], epoch: int, step: int = 0, steps_per_epoch: int = 469) -> float:
    return eps_schedule(phases, epoch, step, steps_per_epoch, epoch * steps_per_epoch + step)[1]


@pytest.mark.parametrize("epoch", range(40))
@pytest.mark.parametrize("step", [0, 17, 468])
def test_iat_is_the_papers_staircase(epoch: int, step: int) -> None:
    assert eps_at(IAT, epoch, step) == float(f"{(epoch + 1) / 100:.2f}")


def test_extended_switches_eps_and_attack_at_epoch_30() -> None:
    assert [eps_at(EXTENDED, epoch, 468) for epoch in (0, 29, 30, 34)] == [0.3, 0.3, 0.4, 0.4]
    assert eps_schedule(EXTENDED, 29, 468, 469, 0)[0].steps is None
    assert eps_schedule(EXTENDED, 30, 0, 469, 0)[0].steps == 200


def test_a_linear_ramp_by_step_goes_from_its_start_to_its_end() -> None:
    phases = [Phase(epochs=2, start_eps=0, end_eps="8/255"), Phase(epochs=1, end_eps="8/255")]
    values = [eps_at(phases, epoch, step, 5) for epoch in range(3) for step in range(5)]
    assert values[0] == 0
    assert values[9:] == [8 / 255] * 6
    assert values[3] == pytest.approx(8 / 255 * 3 / 9)


def test_a_cosine_ramp_is_flat_at_both_ends() -> None:
    phases = [Phase(train_steps=101, start_eps=0.1, end_eps=0.3, shape="cosine")]
    values = [eps_schedule(phases, 0, step, 101, step)[1] for step in range(101)]
    assert (values[0], values[100]) == (0.1, 0.3)
    assert values[50] == pytest.approx(0.2)
    assert values[1] - values[0] < 0.1 * (values[51] - values[50])


def test_train_steps_count_over_epochs() -> None:
    phases = [Phase(train_steps=7, end_eps=0.1), Phase(train_steps=3, start_eps=0.2, end_eps=0.4)]
    values = [eps_schedule(phases, step // 4, step % 4, 4, step)[1] for step in range(12)]
    assert values == pytest.approx([0.1] * 7 + [0.2, 0.3, 0.4, 0.4, 0.4])


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
    st.sampled_from(["linear", "cosine"]),
    st.sampled_from(["step", "epoch"]),
    st.integers(1, 6),
)
def test_every_update_of_a_phase_lies_between_its_ends(
    lengths: list[tuple[int, float, float]], shape: Any, interval: Any, per_epoch: int
) -> None:
    phases = [Phase(epochs=n, start_eps=a, end_eps=b, shape=shape, interval=interval) for n, a, b in lengths]
    epoch = 0
    for n, a, b in lengths:
        values = [eps_at(phases, epoch + e, s, per_epoch) for e in range(n) for s in range(per_epoch)]
        slack = 1e-6
        assert all(min(a, b) - slack <= value <= max(a, b) + slack for value in values)
        assert values[-1] == b
        assert values == sorted(values, reverse=a > b) or max(values) - min(values) < slack
        epoch += n


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"end_eps": 0.4}, "needs either epochs or train_steps"),
        ({"end_eps": 0.4, "epochs": 3, "train_steps": 3}, "needs either epochs or train_steps"),
        ({"end_eps": 0.4, "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"end_eps": -0.1, "epochs": 1}, "end_eps must be at least 0"),
        ({"end_eps": "x", "epochs": 1}, "end_eps must be a number"),
        ({"end_eps": 0.4, "start_eps": "nan", "epochs": 1}, "start_eps must be a number"),
        ({"end_eps": 0.4, "epochs": 1, "shape": "square"}, "shape must be one of"),
        ({"end_eps": 0.4, "epochs": 1, "interval": "hour"}, "interval must be one of"),
        ({"end_eps": 0.4, "train_steps": 5, "interval": "epoch"}, "needs a length in epochs"),
        ({"end_eps": 0.4, "start_eps": 0.1, "epochs": 1, "shape": "constant"}, "needs start_eps equal to end_eps"),
        ({"end_eps": 0.4, "epochs": 1, "step_size": 0}, "step_size must be above 0"),
    ],
)
def test_wrong_phases_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phase(**fields)


@pytest.mark.parametrize(
    ("phases", "message"),
    [([], "at least one phase"), ([Phase(0.1, epochs=1), Phase(0.1, train_steps=1)], "all in train_steps; got both")],
)
def test_wrong_lists_are_refused(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonRampCallback(tuple(phases))


class Recorder(Callback):
    """What each training batch was attacked with."""

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


def test_the_module_is_attacked_as_the_phases_say(tmp_path: Path) -> None:
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


def test_without_phases_eps_is_the_modules_own(tmp_path: Path) -> None:
    _, recorder = run(tmp_path, EpsilonRampCallback(), max_epochs=1)
    assert {eps for _, eps, _ in recorder.seen} == {0.4}


@pytest.mark.parametrize(
    "phases", [[Phase(0.4, start_eps=0, epochs=2), Phase(0.4, epochs=1)], [Phase(0.4, 0, train_steps=12)]]
)
@pytest.mark.parametrize("at_step", [3, 4, 6])
def test_a_resumed_run_goes_on_where_it_was_bit_for_bit(tmp_path: Path, at_step: int, phases: list[Phase]) -> None:
    """From mid-epoch and from an epoch's end: eps, data order, attacks and weights as without a break."""
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
    weights.unlink()  # A resumed run takes nothing from it.
    resumed, rest = run(tmp_path, ramp(), fresh, tmp_path / "a" / f"step={at_step}.ckpt", max_epochs=3)
    assert len(rest.seen) == 12 - at_step
    assert rest.seen == recorder.seen[at_step:]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_init_from_loads_weights_and_says_so(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    source = MNISTCNN()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = {}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            loaded["weight"] = pl_module.network.conv1.weight.clone()

    ramp = EpsilonRampCallback(init_from=str(tmp_path / "w.pth"))
    with caplog.at_level("INFO"):
        run(tmp_path, ramp, MNISTClassifier(attack=PGD(steps=1)), callbacks=(Look(),), max_steps=1, max_epochs=1)
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
def test_a_schedule_that_does_not_fit_the_run_is_refused(
    tmp_path: Path, settings: dict[str, Any], phases: list[Phase], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, EpsilonRampCallback(tuple(phases)), **settings)


def test_a_module_without_the_attributes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sets `eps`, which LightningModule lacks"):
        EpsilonRampCallback().setup(Trainer(logger=False), LightningModule(), "fit")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint not found"):
        run(tmp_path, EpsilonRampCallback(init_from=str(tmp_path / "w.pth")), max_epochs=1)


RAMP = (Phase(0.1, epochs=1, steps=3), Phase(0.4, start_eps=0.1, epochs=1, steps=5, step_size=0.2))


class Picky(AdversarialTraining):
    """Takes no attack of 13 steps."""

    def check(self, attack: Any, network: nn.Module) -> None:
        if attack.steps == 13:
            raise ValueError("not 13 steps")


class Stop(Callback):
    """Ends a run from within a batch of its second epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def test_a_second_fit_begins_as_the_first_did(tmp_path: Path) -> None:
    ramp = EpsilonRampCallback(RAMP)
    module, first = run(tmp_path, ramp, max_epochs=2)
    assert (module.eps, module.attack) == (0.4, PGD(steps=2))
    Trainer(logger=False, accelerator="cpu").test(module, loader(), verbose=False)
    _, second = run(tmp_path, ramp, module, max_epochs=2)
    assert [seen[1:] for seen in second.seen] == [seen[1:] for seen in first.seen]
    _, plain = run(tmp_path, EpsilonRampCallback(), module, max_epochs=1)
    assert [seen[1:] for seen in plain.seen] == [(0.4, 2)] * 4


@pytest.mark.parametrize("error", [ValueError("stopped"), KeyboardInterrupt(), SystemExit(3)])
def test_a_run_that_breaks_leaves_the_modules_own_settings(tmp_path: Path, error: BaseException) -> None:
    module = AdversarialClassifier(small_network(), eps=0.2, attack=PGD(steps=2))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((ValueError, SystemExit)):
        run(tmp_path, EpsilonRampCallback(RAMP), module, callbacks=(Stop(error),), max_epochs=2)
    signal.signal(signal.SIGINT, handler)  # Lightning switches it off at an interruption.
    assert (module.eps, module.attack) == (0.2, PGD(steps=2))


def test_two_ramps_leave_the_modules_own_settings(tmp_path: Path) -> None:
    one, two = EpsilonRampCallback((Phase(0.3, epochs=1, steps=4),)), EpsilonRampCallback((Phase(0.1, epochs=1),))
    module, _ = run(tmp_path, one, callbacks=(two,), max_epochs=1)
    assert (module.eps, module.attack) == (0.4, PGD(steps=2))


def test_a_trainer_that_trains_on_keeps_the_weights(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), eps=0.1, attack=PGD(steps=1))
    begun: list[Tensor] = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            begun.append(pl_module.network[1].weight.detach().clone())

    trainer = Trainer(
        logger=False, accelerator="cpu", max_epochs=1, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[EpsilonRampCallback(init_from=str(tmp_path / "w.pth")), Look()],
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
        (Phase(0.4, train_steps=7), {"max_epochs": 2}, "no end that is known before; .* set trainer.max_steps to 7"),
        (Phase(0.4, epochs=2), {"max_epochs": -1}, "no end that is known before; .* set trainer.max_epochs to 2"),
    ],
)
def test_what_needs_a_length_is_refused_without_one(
    tmp_path: Path, phase: Phase, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        stream(tmp_path, (phase,), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"fast_dev_run": 3}, {"max_epochs": 2, "overfit_batches": 2}, {"max_time": "00:01:00:00", "max_epochs": 2}],
)
def test_runs_of_other_kinds_follow_the_phases(tmp_path: Path, settings: dict[str, Any]) -> None:
    _, recorder = run(tmp_path, EpsilonRampCallback((Phase(0.3, start_eps=0.1, epochs=2),)), **settings)
    assert recorder.seen[0][1] == 0.1
    if "fast_dev_run" not in settings:
        assert recorder.seen[-1][1] == 0.3
        with pytest.raises(ValueError, match="3 epochs, the run lasts 2"):
            run(tmp_path, EpsilonRampCallback((Phase(0.3, epochs=3),)), **settings)


@pytest.mark.parametrize(
    ("attack", "objective", "phase", "message"),
    [
        (MixedPGD((PGD(), PGD())), None, Phase(0.4, epochs=1, step_size=0.1), "a step size for each of its 2 attacks"),
        (Square(), None, Phase(0.4, epochs=1, steps=5), "Square has no steps to set"),
        (PGD(), Picky(), Phase(0.4, epochs=1, steps=13), "not 13 steps"),
    ],
)
def test_a_phase_that_the_attack_or_the_objective_can_not_take_is_refused_at_set_up(
    tmp_path: Path, attack: Attack, objective: Any, phase: Phase, message: str
) -> None:
    module = AdversarialClassifier(small_network(), eps=0.4, attack=attack, objective=objective)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        run(tmp_path, EpsilonRampCallback((phase,)), module, max_epochs=1)
    assert "\n" not in str(caught.value)


def test_an_accumulation_of_no_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches must be at least 1, got 0"):
        run(tmp_path, EpsilonRampCallback(RAMP), max_epochs=2, accumulate_grad_batches=0)
