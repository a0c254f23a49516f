"""The average equals one computed by hand, is what is validated and saved, and survives a resume bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn

from callbacks import AveragedWeights
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.data import TensorBatches
from rampart.kernels import Execution, recording
from rampart.kernels.folding import conv_bn
from tests.rampart.kernels.tape import Tape

BATCHES = 5
State = dict[str, Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def loader(shuffle: bool = True) -> TensorBatches:
    images = torch.randint(256, (4 * BATCHES, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(4 * BATCHES) % 4, batch_size=4, shuffle=shuffle)


def copy_state(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class Seen(Callback):
    """Record the trained weights after each optimizer step, and those that each validation measures."""

    def __init__(self) -> None:
        self.trained: list[State] = []
        self.validated: list[State] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.trained):
            self.trained.append(copy_state(pl_module.network))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(copy_state(pl_module.network))


def run(
    folder: Path,
    average: Callback,
    *callbacks: Callback,
    module: LightningModule | None = None,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> tuple[Any, Seen]:
    seen = Seen()
    trainer = Trainer(
        **{"max_epochs": 2} | settings, default_root_dir=folder, accelerator="cpu", logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[average, *callbacks, seen],
    )  # fmt: skip
    module = module or AdversarialClassifier(network(), eps=0.2, attack=PGD(steps=1), val_attack=PGD(steps=1))
    trainer.fit(module, loader(), loader(shuffle=False), ckpt_path=ckpt_path)
    return module, seen


def average_by_hand(trained: list[State], decays: list[float]) -> State:
    average = trained[0]
    for state, decay in zip(trained[1:], decays, strict=True):
        average = {
            name: average[name] + (state[name] - average[name]) * (1 - decay) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
    return average


def assert_equal(one: State, other: State) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("average", "first", "decays"),
    [
        (AveragedWeights(0.9), 1, [min(0.9, (1 + n) / (10 + n)) for n in range(1, 10)]),
        (AveragedWeights(0.3), 1, [2 / 11, 0.25, *[0.3] * 7]),
        (AveragedWeights(0.8, start=4, warm_up=False), 4, [0.8] * 6),
        (AveragedWeights(0.8, start=0.55, warm_up=False), 6, [0.8] * 4),
        (AveragedWeights(None, start=3), 3, [n / (n + 1) for n in range(1, 8)]),
    ],
)
def test_the_average_equals_one_computed_by_hand(
    tmp_path: Path, average: AveragedWeights, first: int, decays: list[float]
) -> None:
    module, seen = run(tmp_path, average)
    assert len(seen.trained) == 2 * BATCHES
    expected = average_by_hand(seen.trained[first - 1 :], decays)
    for name, tensor in module.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    assert module.network[1].num_batches_tracked == seen.trained[-1]["1.num_batches_tracked"]


def save_every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_optimizer_step_updates_the_average_once(tmp_path: Path, accumulate: int) -> None:
    average = AveragedWeights(None, start=2)
    _, seen = run(tmp_path, average, save_every_step(tmp_path), accumulate_grad_batches=accumulate)
    steps = len(seen.trained)
    assert steps == (10 if accumulate == 1 else 6)
    assert "averaging_state" not in torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    for step in range(2, steps + 1):
        assert torch.load(tmp_path / f"step={step}.ckpt")["averaging_state"]["n_averaged"] == step - 1


def test_validation_and_checkpoints_have_the_average(tmp_path: Path) -> None:
    module, seen = run(tmp_path, AveragedWeights(0.5, start=7), save_every_step(tmp_path))
    assert_equal(seen.validated[0], seen.trained[4])  # before the start: the current weights
    average = average_by_hand(seen.trained[6:], [2 / 11, 0.25, 4 / 13])
    checkpoint = torch.load(tmp_path / "step=10.ckpt", weights_only=True)
    for state in (module.network.state_dict(), seen.validated[-1]):
        torch.testing.assert_close(state, average, rtol=1e-5, atol=1e-7)
        assert_equal(state, {k: checkpoint["state_dict"][f"network.{k}"] for k in state})
    assert_equal({k: checkpoint["current_model_state"][f"network.{k}"] for k in average}, seen.trained[-1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(tmp_path: Path, accumulate: int) -> None:
    """Resumed before, at and after the start of the average, within an epoch and at its end."""

    def average() -> AveragedWeights:
        return AveragedWeights(0.9, start=4)

    whole, seen = run(tmp_path, average(), save_every_step(tmp_path), accumulate_grad_batches=accumulate)
    for at_step in (3, 4, 5):
        path = tmp_path / f"step={at_step}.ckpt"
        resumed, rest = run(tmp_path, average(), ckpt_path=path, accumulate_grad_batches=accumulate)
        assert_equal(whole.state_dict(), resumed.state_dict())
        assert_equal(seen.trained[-1], rest.trained[-1])
        assert_equal(seen.validated[-1], rest.validated[-1])


def test_resuming_a_finished_run_leaves_the_average(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True, enable_version_counter=False)
    whole, _ = run(tmp_path, AveragedWeights(0.9), checkpoint)
    resumed, rest = run(tmp_path, AveragedWeights(0.9), ckpt_path=tmp_path / "end.ckpt")
    assert not rest.trained
    assert_equal(whole.network.state_dict(), resumed.network.state_dict())


class Tied(nn.Module):
    """A network with one layer under two names, a buffer that is not saved, and one that is counted up."""

    count: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(36, 36), nn.Linear(36, 4)
        self.second = self.first
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        self.count += self.training
        logits: Tensor = self.last(self.second(self.first(images.flatten(1)).relu() * self.scale))
        return logits


def test_weights_with_two_names_and_unsaved_buffers(tmp_path: Path) -> None:
    def module() -> AdversarialClassifier:
        return AdversarialClassifier(Tied(), eps=0.2, attack=PGD(steps=1), val_attack=PGD(steps=1))

    whole, seen = run(tmp_path, AveragedWeights(0.5), save_every_step(tmp_path), module=module())
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 10)]
    for name, tensor in average_by_hand(seen.trained, decays).items():
        torch.testing.assert_close(whole.network.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert "second.weight" in whole.network.state_dict()
    resumed, _ = run(tmp_path, AveragedWeights(0.5), module=module(), ckpt_path=tmp_path / "step=7.ckpt")
    assert_equal(whole.network.state_dict(), resumed.network.state_dict())


class Gap(Callback):
    """Raise an error in the n-th validation batch."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_validation_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise ValueError("stopped")


def test_an_error_in_validation_leaves_the_trained_weights(tmp_path: Path) -> None:
    module = AdversarialClassifier(network(), eps=0.2, attack=PGD(steps=1), val_attack=PGD(steps=1))
    seen = Seen()
    with pytest.raises(ValueError, match="stopped"):
        run(tmp_path, AveragedWeights(0.5), seen, Gap(BATCHES + 2), module=module)
    assert_equal(module.network.state_dict(), seen.trained[-1])
    again, seen = run(tmp_path, AveragedWeights(None), module=module, max_epochs=1)
    expected = average_by_hand(seen.trained, [n / (n + 1) for n in range(1, BATCHES)])
    torch.testing.assert_close(copy_state(again.network), expected, rtol=1e-5, atol=1e-7)


def test_a_late_start_leaves_the_trained_weights(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="start 11 is after the end of the run: nothing is averaged"):
        module, seen = run(tmp_path, AveragedWeights(start=11), save_every_step(tmp_path))
    assert_equal(module.network.state_dict(), seen.trained[-1])
    assert "current_model_state" not in torch.load(tmp_path / "step=10.ckpt", weights_only=True)


def test_a_fraction_of_a_run_without_a_known_end_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"start 0\.5 is a fraction of the run, whose number of steps is not known"):
        run(tmp_path, AveragedWeights(start=0.5), max_epochs=-1)


def test_lightning_resumes_the_average(tmp_path: Path) -> None:
    run(tmp_path, AveragedWeights(0.5, warm_up=False), save_every_step(tmp_path))
    path = tmp_path / "step=5.ckpt"
    module, seen = run(tmp_path, AveragedWeights(0.5, warm_up=False), ckpt_path=path)
    other, others = run(tmp_path, EMAWeightAveraging(decay=0.5), ckpt_path=path)
    assert_equal(seen.trained[-1], others.trained[-1])
    torch.testing.assert_close(module.network[0].weight, other.network[0].weight, rtol=1e-5, atol=1e-7)
    for second in (EMAWeightAveraging(), StochasticWeightAveraging(0.01)):
        with pytest.raises(ValueError, match="must hold at most one callback that averages weights"):
            run(tmp_path, AveragedWeights(), second)


class Folded(nn.Module):
    """A network whose BatchNorm is folded into its convolution in attacks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.linear = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(conv_bn(self.conv, self.bn, images).relu().flatten(1))
        return logits


class Attacked(Callback):
    """Record the adversarial images of each validation batch."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        images, labels, _index = pl_module.read_batch(batch)
        with pl_module.execution.evaluation("cpu"):
            generator = torch.Generator().manual_seed(0)
            self.images.append(
                pl_module.val_attack(pl_module.network, images, labels, 0.2, generator=generator).clone()
            )


def test_recorded_attacks_follow_the_swapped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recording.RECORDERS, "cpu", Tape)
    recorded, called = Attacked(), Attacked()
    modules = []
    for attacked, capture in ((recorded, None), (called, False)):
        modules.append(AdversarialClassifier(Folded(), eps=0.2, attack=PGD(steps=16), val_attack=PGD(steps=16)))
        modules[-1].execution = Execution(capture=capture)
        run(tmp_path, AveragedWeights(0.5), attacked, module=modules[-1])
    recordings = recording._RECORDINGS[modules[0].network]
    assert recordings._recordings
    assert recordings._moves == 0
    assert modules[1].network not in recording._RECORDINGS
    assert all(torch.equal(*pair) for pair in zip(recorded.images, called.images, strict=True))
    assert not torch.equal(recorded.images[0], recorded.images[BATCHES])
    assert_equal(modules[0].network.state_dict(), modules[1].network.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1}, r"decay must be in \[0, 1\), or null for the mean, got 1"),
        ({"decay": -0.1}, "decay must be"),
        ({"start": -1}, "start must be a whole number of steps, or a fraction of the run below 1, got -1"),
        ({"start": 1.5}, "start must be"),
    ],
)
def test_settings_out_of_range_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AveragedWeights(**settings)
