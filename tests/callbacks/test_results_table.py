import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ResultsTableCallback
from cli import main
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, Attack, Eps, Model
from rampart.kernels import Execution
from tests.conftest import ROOT
from tests.test_cli import QUICKSTART


@dataclass(frozen=True)
class Inconsistent(Attack):
    """Fools every image at a small eps and none at a large one."""

    norm = "Linf"
    name = "inconsistent"

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        return images if float(eps) > 0.2 else 1 - images


def test_inconsistent_results_are_not_printed(tmp_path: Path, capsys: Any) -> None:
    weights = ROOT / "pretrained" / "mnist" / "fast" / "weights.safetensors"
    inconsistent = "{{eps: {}, attack: {{class_path: tests.callbacks.test_results_table.Inconsistent}}}}"
    with pytest.raises(SystemExit) as stopped:
        main([
            "test", "--config", QUICKSTART, f"--runs_dir={tmp_path}", f"--ckpt_path={weights}", "--curve.num_images=0",
            f"--model.test_attacks=[{inconsistent.format(0.1)}, {inconsistent.format(0.3)}]",
            "--trainer.enable_progress_bar=false",
        ])  # fmt: skip
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert "error: the evaluation is broken, no number is reported" in captured.err
    assert "images are robust at eps 0.3" in captured.err
    assert "accuracy (%)" not in captured.out
    assert not list(tmp_path.rglob("test.json"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_report_names_the_precision_of_its_numbers(tmp_path: Path, precision: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    loader: Any = DataLoader(TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 3), batch_size=6)
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[ResultsTableCallback()], logger=False, accelerator="cpu",
        precision=precision, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    module = AdversarialClassifier(network, eps=0.1, val_attack=PGD(steps=1))
    module.execution = Execution(tf32=True, memory_format="channels_last", attack_precision="bfloat16")
    trainer.test(module, loader)
    report = json.loads((tmp_path / "test.json").read_text())
    expected = "float64" if precision == "64-true" else "float32"
    names = ("precision", "trainer_precision", "tf32", "device", "world_size", "deterministic")
    assert [report[name] for name in names] == [expected, precision, False, "cpu", 1, False]
    assert report["execution"] == {
        "capture": False, "compile": False, "memory_format": "channels_last", "tf32": False, "attack_precision": None,
    }  # fmt: skip


def test_the_report_names_the_settings_of_the_test_not_those_after_it(tmp_path: Path) -> None:
    class Changing(Callback):
        def on_test_epoch_end(self, *_: Any) -> None:
            torch.use_deterministic_algorithms(False)

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    loader: Any = DataLoader(TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 3), batch_size=6)
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[ResultsTableCallback(), Changing()], logger=False, accelerator="cpu",
        deterministic=True, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(AdversarialClassifier(network, eps=0.1, val_attack=PGD(steps=1)), loader)
    assert json.loads((tmp_path / "test.json").read_text())["deterministic"]


@pytest.mark.parametrize(("limit", "images"), [(1, None), (1.0, 6)])
def test_a_limit_of_one_batch_is_not_reported_as_all_images(tmp_path: Path, limit: float, images: int | None) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    loader: Any = DataLoader(TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 3), batch_size=2)
    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[ResultsTableCallback()], logger=False, accelerator="cpu",
        limit_test_batches=limit, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(AdversarialClassifier(network, eps=0.1, val_attack=PGD(steps=1)), loader)
    assert json.loads((tmp_path / "test.json").read_text())["images"] == images
