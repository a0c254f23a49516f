"""Precision in which the network computes, read from inside its forward pass."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialImagesCallback, RobustnessCurveCallback
from cli import main
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.bounds import interval_logits
from rampart.kernels import Execution, current_execution, tf32_allowed
from tests.commands.toy import SETTINGS

backends: Any = torch.backends
FULL = (False, False, "ieee")
READINGS: list[tuple[bool, Any]] = []
"""(train mode, precision) at every call of a network."""


def read_precision() -> Any:
    """Return (autocast, TF32 on a GPU, precision of products on a CPU)."""
    return torch.is_autocast_enabled("cpu"), tf32_allowed(), backends.mkldnn.matmul.fp32_precision


class _ReadInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        READINGS.append((True, ("backward", tf32_allowed())))
        return grad


class Reader(nn.Module):
    """Network that notes the precision in force at each call, and in each backward pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.linear = nn.Flatten(), nn.Linear(16, 2)

    def forward(self, images: Any) -> Any:
        READINGS.append((self.training, read_precision()))
        logits = self.linear(self.flatten(images))
        return _ReadInBackward.apply(logits) if self.training else logits


class ForcedTF32(Execution):
    """Options that set in training, on a CPU too, what they set on a GPU."""

    def training(self, device_type: str) -> Any:
        assert device_type == "cpu"
        return super().training("cuda")


@pytest.fixture(autouse=True)
def _low_precision() -> Iterator[None]:
    """Allow every low precision that torch has a setting for."""
    READINGS.clear()
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.allow_tf32 = True
    backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    torch.set_float32_matmul_precision("highest")
    backends.mkldnn.matmul.fp32_precision = "none"


def precisions(training: bool) -> set[Any]:
    return {precision for mode, precision in READINGS if mode is training}


def make_trainer(tmp_path: Any, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet, **settings)


def make_loader() -> Any:
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4)


def make_module() -> Any:
    attack = PGD(steps=2)
    return AdversarialClassifier(Reader(), eps=0.1, attack=attack, test_attacks=(NamedAttack(attack, 0.1),))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_and_figures_during_training_compute_in_full_float32(tmp_path: Any, precision: Any) -> None:
    module, trainer = (
        make_module(),
        make_trainer(tmp_path, precision=precision, callbacks=[AdversarialImagesCallback()]),
    )
    module.execution = Execution(tf32=True)
    module.eps = 0.0  # So the training step does not attack, and all calls in eval mode are of validations.
    trainer.fit(module, make_loader(), make_loader())
    assert precisions(training=False) == {FULL}
    assert {autocast for autocast, *_ in precisions(training=True)} == {precision == "bf16-mixed", "backward"}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_evaluate_compute_in_full_float32(tmp_path: Any, command: str) -> None:
    module = make_module()
    module.execution = Execution(tf32=True, attack_precision="bfloat16")
    curve = RobustnessCurveCallback()
    trainer = make_trainer(tmp_path, precision="bf16-mixed", callbacks=[curve])
    getattr(trainer, command)(module, make_loader())
    assert {precision for _, precision in READINGS} == {FULL}
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("command", ["test", "evaluate"])
def test_commands_of_the_command_line_compute_in_full_float32(tmp_path: Any, command: str) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(Reader().state_dict(), weights)
    main([
        command, *SETTINGS, "--model.network=tests.lightning_modules.test_execution.Reader", f"--ckpt_path={weights}",
        "--trainer.precision=bf16-mixed", "--execution.tf32=true", "--execution.attack_precision=bfloat16",
        f"--runs_dir={tmp_path}", "--curve.num_images=4", *(["--preset=quick"] if command == "evaluate" else []),
    ])  # fmt: skip
    assert {precision for _, precision in READINGS} == {FULL}
    assert len(READINGS) > 3


def test_bounds_are_computed_in_full_float32() -> None:
    network = Reader().eval()
    with torch.autocast("cpu", torch.bfloat16):
        interval_logits(network, torch.rand(2, 1, 4, 4), 0.1)
    assert {precision for _, precision in READINGS} == {FULL}


@pytest.mark.parametrize("tf32", [None, True, False])
def test_tf32_is_set_in_the_training_step_and_its_backward_pass_alone(tmp_path: Any, tf32: bool | None) -> None:
    torch.set_float32_matmul_precision("high" if tf32 is False else "highest")
    backends.cudnn.allow_tf32 = tf32 is False
    module, before = make_module(), read_precision()
    module.execution, module.eps = ForcedTF32(tf32=tf32), 0.0
    make_trainer(tmp_path).fit(module, make_loader(), make_loader())
    assert {reading[1] for reading in precisions(training=True)} == {tf32 is not False}
    assert "backward" in {reading[0] for reading in precisions(training=True)}
    assert precisions(training=False) == {FULL}
    assert read_precision() == before


def test_settings_are_restored_after_an_error_in_training(tmp_path: Any) -> None:
    module, before = make_module(), read_precision()

    def fail(*_: Any) -> None:
        raise KeyError

    module.execution = ForcedTF32()
    module.network.register_forward_hook(fail)
    with pytest.raises(KeyError):
        make_trainer(tmp_path).fit(module, make_loader())
    assert read_precision() == before
    assert current_execution() == Execution()


def test_options_are_neither_hyper_parameters_nor_in_checkpoints(tmp_path: Any) -> None:
    module = make_module()
    module.execution = Execution(memory_format="channels_last")
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert "memory_format" not in str(checkpoint)
    assert "channels_last" not in str(checkpoint)
    assert AdversarialClassifier.load_from_checkpoint(tmp_path / "a.ckpt", network=Reader()).execution == Execution()
