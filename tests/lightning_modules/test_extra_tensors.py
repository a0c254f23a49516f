from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.data import TensorBatches
from rampart.files import load_weights
from rampart.objectives import MTLIBP, TRADES, AdversarialTraining


@dataclass(frozen=True)
class Weighted:
    """An attack loss with a tensor outside any module."""

    weight: Tensor

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, self.weight, reduction="none")


def batches() -> TensorBatches:
    images = torch.randint(256, (20, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(20) % 10, batch_size=10)


def module(objective: Any = None, attack: Any = None, **settings: Any) -> Any:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    return AdversarialClassifier(network, eps=0.1, objective=objective, attack=attack or PGD(steps=1), **settings)


def weighted(value: float) -> AdversarialTraining:
    return AdversarialTraining(loss=nn.CrossEntropyLoss(weight=torch.full((10,), value)))


def fit(trained: Any, folder: Path, ckpt_path: Path | None = None, max_epochs: int = 1) -> Path:
    trainer = Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(trained, batches(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


def test_a_loss_moves_with_the_module() -> None:
    objective = weighted(2.0)
    trained = module(objective)
    trained.to(torch.float64)
    assert objective.loss is not None
    assert objective.loss.weight.dtype == torch.float64
    assert trained.to("meta").objective.loss.weight.is_meta


@pytest.mark.parametrize("where", ["attack", "val_attack", "test_attacks"])
def test_a_tensor_that_an_attack_holds_moves_with_the_module(where: str) -> None:
    attack = PGD(steps=1, loss=Weighted(torch.arange(10.0)))
    settings: Any = {where: (NamedAttack(attack, 0.1),) if where == "test_attacks" else attack}
    trained = module(**settings)
    trained.to(torch.float64)
    loss: Any = attack.loss
    assert loss.weight.dtype == torch.float64
    assert torch.equal(loss.weight, torch.arange(10.0, dtype=torch.float64))
    trained.load_state_dict({name: tensor + 1 for name, tensor in trained.state_dict().items()})
    assert torch.equal(loss.weight, torch.arange(1.0, 11.0, dtype=torch.float64))


def test_class_weights_are_saved_and_loaded_when_a_run_is_resumed(tmp_path: Path) -> None:
    path = fit(module(weighted(3.0)), tmp_path)
    resumed = module(weighted(1.0))
    fit(resumed, tmp_path / "b", path, max_epochs=2)
    assert torch.equal(resumed.objective.loss.weight, torch.full((10,), 3.0))


def test_class_weights_of_an_earlier_versions_checkpoint_are_loaded(tmp_path: Path) -> None:
    saved = torch.load(fit(module(weighted(3.0)), tmp_path), weights_only=True)
    state = {name.replace("extra_tensors.", "held."): value for name, value in saved["state_dict"].items()}
    assert state.keys() != saved["state_dict"].keys()
    torch.save(saved | {"state_dict": state}, tmp_path / "old.ckpt")
    resumed = module(weighted(1.0))
    fit(resumed, tmp_path, tmp_path / "old.ckpt", max_epochs=2)
    assert torch.equal(resumed.objective.loss.weight, torch.full((10,), 3.0))


@pytest.mark.parametrize("objective", [None, TRADES(), MTLIBP(adversarial=weighted(2.0))])
def test_a_checkpoint_loads_if_its_extra_tensors_differ_from_the_modules(tmp_path: Path, objective: Any) -> None:
    """Checkpoints of the earliest versions have none; a module that only evaluates needs none."""
    path = fit(module(weighted(3.0)), tmp_path)
    other = module(objective)
    Trainer(logger=False, accelerator="cpu").test(other, batches(), ckpt_path=path, verbose=False)
    old = torch.load(path, weights_only=True)
    old["state_dict"] = {
        name: value for name, value in old["state_dict"].items() if not name.startswith("extra_tensors")
    }
    torch.save(old, tmp_path / "old.ckpt")
    resumed = module(weighted(2.0))
    fit(resumed, tmp_path, tmp_path / "old.ckpt", max_epochs=2)
    assert torch.equal(resumed.objective.loss.weight, torch.full((10,), 2.0))
    load_weights(module().network, path)


def test_only_the_network_is_trained(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Distilled(AdversarialTraining):
        teacher: nn.Module | None = None

    teacher = nn.Linear(36, 10)
    before = teacher.weight.detach().clone()
    trained = module(Distilled(teacher=teacher))
    fit(trained, tmp_path)
    assert torch.equal(teacher.weight, before)
    assert not teacher.weight.requires_grad
    assert all(parameter.requires_grad for parameter in trained.network.parameters())


def test_a_network_that_an_objective_holds_is_saved_once() -> None:
    @dataclass(frozen=True)
    class Selfish(AdversarialTraining):
        network: nn.Module | None = None

    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10))
    trained = AdversarialClassifier(network, eps=0.1, objective=Selfish(network=network))
    assert not [name for name in trained.state_dict() if name.startswith("extra_tensors")]
    assert network[1].weight.requires_grad
