"""A certified training through the command line: checkpoint, table, files and curves show certified accuracy."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import RunCheckpoint
from cli import main
from tests.commands.toy import ATTACK, SETTINGS

BOUND = "--model.objective=tests.lightning_modules.test_certified_accuracy.Bound"
FIT = ["fit", *SETTINGS, BOUND, "--curve.num_images=12", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]


def checkpoint_state(path: Path) -> Any:
    states = torch.load(path, weights_only=True)["callbacks"]
    return next(state for name, state in states.items() if name.startswith("RunCheckpoint"))


def test_a_certified_training_shows_both_sides_everywhere(tmp_path: Path, capsys: Any) -> None:
    rows = ", ".join(f"{{eps: {eps}, attack: {ATTACK}}}" for eps in (0.05, 0.1))
    main([*FIT, f"--runs_dir={tmp_path}", "--model.optimizer.lr=0.05", f"--model.test_attacks=[{rows}]"])
    out = capsys.readouterr().out
    assert "attack        accuracy (%)  certified (%), 12 test images" in out
    run = tmp_path / "unnamed" / "fit-0"
    state = checkpoint_state(run / "checkpoints" / "last.ckpt")
    assert state["monitor"] == "val/certified_acc"
    clean, small, large = json.loads((run / "test.json").read_text())["results"]
    assert "certified" not in clean
    assert large["certified"] == pytest.approx(float(state["best_model_score"]))
    assert 0 < large["certified"] <= small["certified"] <= small["accuracy"] <= clean["accuracy"]
    numbers = (f"{100 * large[name]:.2f}" for name in ("accuracy", "certified"))
    assert re.search(r"\nPGD-1 @ 0\.1 +{} +{}\n".format(*numbers), out)
    with (run / "robustness_curve.csv").open() as file:
        curve = {float(row["eps"]): (float(row["accuracy"]), float(row["certified"])) for row in csv.DictReader(file)}
    assert all(certified <= robust for robust, certified in curve.values())
    assert curve[0.1][1] == pytest.approx(large["certified"])
    board = EventAccumulator(str(run)).Reload()
    assert {"val/certified_acc", "test/certified_acc/0.1", "train/bound_loss"} <= set(board.Tags()["scalars"])
    main(["validate", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"])
    assert "certified (%), 12 validation images" in capsys.readouterr().out


@pytest.mark.parametrize(("monitor", "last"), [("val/certified_acc", True), ("val/robust_acc", False)])
def test_of_equal_certified_accuracies_the_last_is_the_best(monitor: str, last: bool) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda decision: decision))
    checkpoint = RunCheckpoint(monitor=monitor, mode="max")
    checkpoint.best_k_models, checkpoint.kth_best_model_path = {"first": torch.tensor(0.5)}, "first"
    checkpoint.kth_value = torch.tensor(0.5)
    scores = [checkpoint.check_monitor_top_k(trainer, torch.tensor(score)) for score in (0.4, 0.5, 0.6)]
    assert scores == [False, last, True]
