"""Checkpoints of other modules and non-finite weights on the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rampart.networks import MNISTCNN
from tests.test_cli import failure, run

FAST = ("--trainer.limit_test_batches=1", "--curve.num_images=0")


def write_foreign(path: Path, network: MNISTCNN) -> Path:
    """Write a checkpoint of a module that keeps its network in `self.model` and has one more layer."""
    state = {f"model.{name}": value for name, value in network.state_dict().items()} | {"loss.weight": torch.ones(10)}
    # Lightning can't read this either: the checkpoint holds an object of the training script.
    torch.save({"pytorch-lightning_version": "2.6.0", "epoch": 2, "global_step": 5, "state_dict": state,
                "hyper_parameters": {"path": path}}, path)  # fmt: skip
    return path


def test_a_checkpoint_of_another_module_is_tested_but_not_resumed(tmp_path: Path, capsys: Any) -> None:
    path = write_foreign(tmp_path / "theirs.ckpt", MNISTCNN())
    run(tmp_path, "test", f"--ckpt_path={path}", *FAST)
    assert (
        f"from {path}, a checkpoint after epoch 2 (zero-based), step 5; found under key state_dict, prefix model.; "
        "left out: loss.weight" in capsys.readouterr().out
    )
    line, _ = failure(capsys, tmp_path, "fit", f"--ckpt_path={path}")
    assert f"{path} holds objects whose loading would execute code" in line
    assert "--ramp.init_from" in line


def test_a_run_is_not_resumed_from_a_checkpoint_without_its_network(tmp_path: Path, capsys: Any) -> None:
    torch.save({"pytorch-lightning_version": "2.6.0", "state_dict": {"model.0.weight": torch.ones(2)}}, tmp_path / "a")
    line, _ = failure(capsys, tmp_path, "fit", f"--ckpt_path={tmp_path / 'a'}")
    assert f"{tmp_path / 'a'} holds no network's weights under state_dict: network.*" in line
    assert "--ramp.init_from" in line


@pytest.mark.parametrize(
    ("subcommand", "value"),
    [
        ("fit", torch.nan),
        ("test", torch.nan),
        ("validate", torch.inf),
        ("predict", -torch.inf),
        ("evaluate", torch.nan),
        ("export", torch.nan),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, capsys: Any, subcommand: str, value: float) -> None:
    state = MNISTCNN().state_dict()
    state["fc2.bias"][:2] = value
    whole = {f"network.{name}": tensor for name, tensor in state.items()}
    torch.save({"pytorch-lightning_version": "2.6.0", "state_dict": whole}, tmp_path / "diverged.ckpt")
    line, status = failure(capsys, tmp_path, subcommand, f"--ckpt_path={tmp_path / 'diverged.ckpt'}")
    assert status == 1
    assert f"{tmp_path / 'diverged.ckpt'} holds numbers that are not finite" in line
    assert "fc2.bias (2 of 10)" in line


def test_a_run_does_not_start_from_weights_that_are_not_finite(tmp_path: Path, capsys: Any) -> None:
    state = {name: torch.full_like(value, torch.nan) for name, value in MNISTCNN().state_dict().items()}
    torch.save(state, tmp_path / "nan.pth")
    line, _ = failure(capsys, tmp_path, "fit", f"--ramp.init_from={tmp_path / 'nan.pth'}")
    assert "conv1.weight (800 of 800)" in line
