from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import Attack, Eps
from attacks.context import Model
from cli import main
from tests.conftest import ROOT
from tests.test_cli import QUICKSTART


@dataclass(frozen=True)
class Shy(Attack):
    """Does less where it may do more."""

    norm = "Linf"
    name = "shy"

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        return images if float(eps) > 0.2 else 1 - images


def test_numbers_that_cannot_be_are_not_printed(tmp_path: Path, capsys: Any) -> None:
    weights = ROOT / "pretrained" / "mnist" / "fast" / "weights.safetensors"
    shy = "{{eps: {}, attack: {{class_path: tests.callbacks.test_results_table.Shy}}}}"
    with pytest.raises(SystemExit) as stopped:
        main([
            "test", "--config", QUICKSTART, f"--runs_dir={tmp_path}", f"--ckpt_path={weights}", "--curve.num_images=0",
            f"--model.test_attacks=[{shy.format(0.1)}, {shy.format(0.3)}]", "--trainer.enable_progress_bar=false",
        ])  # fmt: skip
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert "error: the evaluation is broken, no number is reported" in captured.err
    assert "images stand at eps 0.3" in captured.err
    assert "accuracy (%)" not in captured.out
    assert not list(tmp_path.rglob("test.json"))
