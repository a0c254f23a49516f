"""The progress bar in a terminal of 80 columns."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.progress_bar import count_run_batches
from tests.commands.test_trainer_settings import run


def shown(capsys: Any) -> list[str]:
    return [part.strip() for part in re.split(r"[\r\n]", capsys.readouterr().out)]


def test_the_bar_shows_epoch_remaining_time_and_both_accuracies(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run(tmp_path, "fit", "--trainer.max_epochs=12", "--trainer.num_sanity_val_steps=1")
    lines = shown(capsys)
    last = [line for line in lines if line.startswith("Epoch 12 of 12")][-1]
    assert re.fullmatch(
        r"Epoch 12 of 12 100% \d\d:\d\d<\d\d:\d\d, clean=\d\.\d{3}, robust=\d\.\d{3}, eps=0\.100, loss=\d\.\d\d", last
    )
    assert len(last) <= 80
    assert any(re.match(r"Epoch 6 of 12 +(4|5)\d% ", line) for line in lines)


def test_the_bar_of_a_test_moves_during_a_batch(tmp_path: Path, capsys: Any) -> None:
    attack = "{class_path: rampart.attacks.PGD, init_args: {steps: 4000}}"
    run(tmp_path, "test", f"--model.test_attacks=[{{eps: 0.1, attack: {attack}}}]", "--data.batch_size=12")
    percentages = {int(found[1]) for line in shown(capsys) if (found := re.match(r"Testing +(\d+)% .*<\d", line))}
    assert len(percentages) > 2
    assert 100 in percentages


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "max_steps": 7, "accumulate_grad_batches": 2}, 14),
        ({"max_epochs": -1}, None),
        ({"max_epochs": 3, "num_training_batches": float("inf")}, None),
    ],
)
def test_batches_of_the_whole_run_are_counted(settings: dict[str, Any], expected: int | None) -> None:
    usual = {"max_steps": -1, "max_epochs": None, "accumulate_grad_batches": 1, "num_training_batches": 10}
    trainer: Any = SimpleNamespace(**usual | settings)
    assert count_run_batches(trainer) == expected
