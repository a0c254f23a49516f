"""Training on bounds through BatchNorm in train mode: resumed, in two processes, and in mixed precision."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from callbacks import AveragedWeights, EpsilonRampCallback
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.data import TensorBatches
from rampart.objectives import IBP
from rampart.schedules import Phase
from tests.conftest import ROOT

IMAGES = torch.randint(256, (20, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(20) % 4


def module(rate: float = 1e-2) -> AdversarialClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    attack, objective = PGD(steps=1), IBP(target_eps=0.2)
    return AdversarialClassifier(
        network, 0.2, attack, attack, objective=objective, optimizer=lambda weights: torch.optim.SGD(weights, rate)
    )


def fit(trained: Any, loader: Any, *callbacks: Callback, ckpt_path: Path | None = None, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        **defaults | settings, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )  # fmt: skip
    trainer.fit(trained, loader, None if trainer.world_size > 1 else loader, ckpt_path=ckpt_path)
    return trainer


def test_a_run_resumed_within_the_ramp_is_bit_equal(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [EpsilonRampCallback((Phase(0.2, 0, epochs=2),)), AveragedWeights(0.9)]

    loader = TensorBatches(IMAGES, LABELS, batch_size=4, shuffle=True)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole, resumed = module(), module()
    first = fit(whole, loader, *callbacks(), save, gradient_clip_val=10)
    second = fit(resumed, loader, *callbacks(), ckpt_path=tmp_path / "step=3.ckpt", gradient_clip_val=10)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert whole.network.get_buffer("1.num_batches_tracked") == 10  # once per step
    assert first.callback_metrics["val/certified_acc"] == second.callback_metrics["val/certified_acc"]


def test_mixed_precision_does_not_change_the_training() -> None:
    states = []
    for precision in ("32-true", "bf16-mixed"):
        trained = module()
        fit(trained, TensorBatches(IMAGES, LABELS, batch_size=4), precision=precision)
        states.append(trained.network.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


class Seen(Callback):
    """Save each process's batch."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.save(list(batch), Path(self.folder) / f"batch-{trainer.global_rank}.pth")


def test_two_processes_average_the_gradients_of_the_bounds(tmp_path: Path) -> None:
    """Each process normalises by its own images; running statistics move once per step."""
    script = tmp_path / "two.py"
    script.write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from tests.lightning_modules.test_certified_training import *\n"
        "trained = module(rate=1.0)\n"
        "loader = DataLoader(TensorDataset(IMAGES / 255, LABELS), batch_size=10)\n"
        f"trainer = fit(trained, loader, Seen({str(tmp_path)!r}), max_epochs=1, devices=2, strategy='ddp')\n"
        f"torch.save(trained.network.state_dict(), f'{tmp_path}/{{trainer.global_rank}}.pth')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True, timeout=240)
    states = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    parts: list[dict[str, Tensor]] = []
    buffers: list[dict[str, Tensor]] = []
    for rank in range(2):
        one = module()
        images, labels = torch.load(tmp_path / f"batch-{rank}.pth", weights_only=True)
        output = one.objective(one.network.train(), images, labels, one.attack, 0.2)
        output.loss.backward()
        parts.append({name: weight.grad for name, weight in one.network.named_parameters() if weight.grad is not None})
        buffers.append(dict(one.network.named_buffers()))
    start = module().network.state_dict()
    for name in parts[0]:
        expected = start[name] - (parts[0][name] + parts[1][name]) / 2
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], expected)
    for rank, state in enumerate(states):
        assert state["1.num_batches_tracked"] == 1
        torch.testing.assert_close(state["1.running_mean"], buffers[rank]["1.running_mean"])
