"""A training step does not make the host wait for an accelerator.

The meta device is tested where there is none: its tensors have no values, so reading one raises an error.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from callbacks import CollapseGuard, EpsilonRampCallback, RampartProgressBar
from datamodules.in_memory import ImageSet, InMemoryDataModule
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, Level
from rampart.networks import MNISTCNN, GatedMNISTCNN
from rampart.objectives import CROWNIBP, IBP, MTLIBP, SABR, TRADES, AdversarialTraining
from rampart.schedules import Phase


class Noise(InMemoryDataModule):
    """Random images, held on the device and augmented there."""

    def __init__(self) -> None:
        super().__init__(batch_size=4, max_shift=1, on_device=True, flip=True, border="edge")

    def read_train(self) -> ImageSet:
        return ImageSet(torch.randint(256, (32, 1, 28, 28), dtype=torch.uint8), torch.arange(32) % 10)

    read_test = read_train


class Watch(Callback):
    """Train on two batches inside a context, and then end the run."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]], first: int) -> None:
        self.watched, self.context, self.first = 0, context, first

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.entered = self.context()
            self.entered.__enter__()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watched += batch_idx >= self.first
        if self.watched == 2:
            self.entered.__exit__(None, None, None)
            raise EnoughError


class EnoughError(Exception):
    """Ends a run that can't end as usual, since a metric on the meta device has no value to report."""


class NoCopies(TorchFunctionMode):
    """Refuse copies of the host's numbers to the meta device, for which the host would wait on an accelerator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "meta":
            name = getattr(func, "__name__", "")
            numbers = name == "new_tensor" or (name in ("tensor", "as_tensor") and not isinstance(args[0], Tensor))
            on_host = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"]
            # Scalars on the host become arguments of kernels.
            tensors = [leaf for leaf in on_host if leaf.ndim or name in ("to", "copy_")]
            assert not numbers, f"{name} copies numbers to the device"
            assert not tensors, f"{name} copies a tensor to the device"
        return result


class OnMeta(SingleDeviceStrategy):
    """Train on the meta device."""

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            """Accept the device."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("meta"), accelerator=self.Accelerator())

    def reduce(self, *_: Any, **__: Any) -> Any:
        """Lightning adds up the lengths of all processes' loaders, and reads the sum."""
        return torch.ones(())


def batchnorm_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


STEPS: dict[str, dict[str, Any]] = {
    "PGD": {},
    "best of two runs": {"attack": PGD(steps=2, iterate="best", restarts=2, loss="dlr")},
    "L2": {"attack": PGD(steps=2, norm="L2", loss="margin")},
    "fast": {
        "attack": PGD(steps=2, start=Level(0.43, 0.57), step_schedule="linear", relative_step_size=0.2),
        "network": GatedMNISTCNN,
    },
    "batch statistics": {"attack": PGD(steps=2, batchnorm="train_and_update"), "network": batchnorm_network},
    "leftover gradient": {"objective": AdversarialTraining(leftover_gradient=True)},
    "TRADES": {"objective": TRADES()},
    "TRADES with BatchNorm": {"objective": TRADES(), "network": batchnorm_network},
    "MTL-IBP": {"objective": MTLIBP(weight=0.1)},
    "IBP": {"objective": IBP(target_eps=0.4, l1=1e-6), "network": batchnorm_network},
    "CROWN-IBP": {"objective": CROWNIBP(target_eps=0.4), "network": batchnorm_network},
    "SABR": {"objective": SABR(target_eps=0.4), "network": batchnorm_network},
    "MTL-IBP with BatchNorm": {"objective": MTLIBP(weight=0.5, target_eps=0.4), "network": batchnorm_network},
    "other options": {
        "objective": AdversarialTraining(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
    },
}


def train_watched(
    context: Callable[[], AbstractContextManager[Any]],
    first: int,
    attack: Any = None,
    network: Callable[[], nn.Module] = MNISTCNN,
    objective: Any = None,
    optimizer: Any = torch.optim.Adam,
    **settings: Any,
) -> None:
    """Train on a few batches, two of them, from ``first`` on, inside a context."""
    module = AdversarialClassifier(
        network(),
        eps=0.1,
        attack=attack or PGD(steps=2),
        objective=objective,
        optimizer=optimizer,
        lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=-1, cycle_momentum=False),
    )
    watch = Watch(context, first)
    ramp = EpsilonRampCallback(phases=(Phase(epochs=1, start_eps=0.05, end_eps=0.1),))
    guard = CollapseGuard(every_n_steps=1)
    trainer = Trainer(
        max_epochs=1, limit_val_batches=0, logger=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[ramp, guard, RampartProgressBar(), watch], **settings,
    )  # fmt: skip
    if isinstance(trainer.strategy, OnMeta):
        trainer._teardown = lambda: None  # type: ignore[method-assign]  # It would move the network to the CPU.
    with pytest.raises(EnoughError):
        trainer.fit(module, Noise())
    assert watch.watched == 2


@pytest.mark.parametrize("step", STEPS)
def test_no_value_of_a_training_step_is_read(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch has no generators of the meta device.
    monkeypatch.setattr("lightning_modules.adversarial_classifier.make_shared_generator", lambda *_: None)
    # Numbers that the guard has copied to the host while the device computes.
    monkeypatch.setattr("callbacks.step_measurement.HostCopy.read", lambda _: [1.0] * (9 + 5 * 10))
    train_watched(NoCopies, 1, strategy=OnMeta(), **STEPS[step])


@contextmanager
def errors_when_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("step", STEPS)
def test_no_training_step_waits_for_the_gpu(step: str, precision: str) -> None:
    # Attacks are recorded in the first batches.
    train_watched(errors_when_waiting, 4, accelerator="gpu", devices=1, precision=precision, **STEPS[step])


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
        lambda loss: loss.cpu(),
        lambda loss: torch.tensor(0.5, device=loss.device),
        lambda loss: loss.new_tensor([0.5, 0.5]),
        lambda loss: torch.ones(1).to(loss.device),
        lambda loss: loss.expand(3)[torch.tensor([0, 2])],
    ],
)
def test_what_waits_on_an_accelerator_is_refused_on_the_meta_device(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), NoCopies():
        wait(torch.zeros((), device="meta"))
