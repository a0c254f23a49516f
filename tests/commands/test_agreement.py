"""Agreement of several processes on signals and saves, about once a second, and saves by the clock."""

import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callbacks import RunCheckpoint
from cli import main
from commands.agreement import Agreement, find_maxima
from rampart.files.weight_files import read_checkpoint
from tests.commands.test_chaos import COMMON


class Ranks(threading.local):
    """Two ranks in two threads: the batch and the clock of each, and the batches and times of its agreements."""

    def __init__(self) -> None:
        self.batch, self.clock = 0, 0.0
        self.agreed: list[tuple[int, float]] = []

    def monotonic(self) -> float:
        return self.clock


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_of_different_speed_agree_before_the_same_batches(monkeypatch: Any, accumulate: int) -> None:
    ranks, barrier, given = Ranks(), threading.Barrier(2, timeout=20), {}

    def reduce(_: Any, *values: float) -> tuple[float, ...]:
        ranks.agreed.append((ranks.batch, ranks.clock))
        given[threading.current_thread().name] = values
        barrier.wait()
        result = tuple(map(max, zip(*given.values(), strict=True)))
        barrier.wait()
        return result

    monkeypatch.setattr("commands.agreement.find_maxima", reduce)
    monkeypatch.setattr("commands.agreement.time", ranks)
    results: dict[str, list[tuple[int, float]]] = {}

    def run(name: str, factor: float) -> None:
        agreement, trainer = Agreement(), cast(Any, SimpleNamespace(world_size=2, is_global_zero=False))
        # Batches become slower, as with more attack steps.
        for ranks.batch, seconds in enumerate([0.02] * 300 + [0.2] * 60 + [3.0] * 12):
            agreement.before_batch(trainer, None, between_steps=ranks.batch % accumulate == 0)
            ranks.clock += factor * seconds
        results[name] = ranks.agreed

    threads = [threading.Thread(target=run, args=each, name=each[0]) for each in (("0", 1.0), ("1", 1.4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    batches = [batch for batch, _ in results["0"]]
    assert batches == [batch for batch, _ in results["1"]]
    assert batches[0] == 0
    assert all(batch % accumulate == 0 for batch in batches)
    assert len(batches) < 60  # of 372
    for (batch, earlier), (_, later) in pairwise(results["1"]):
        if batch < 250 or 320 < batch < 340:  # no change of speed before the next agreement
            assert later - earlier <= 1.01 + accumulate * 0.3


def test_a_single_process_looks_before_each_batch(monkeypatch: Any) -> None:
    monkeypatch.setattr("commands.agreement.signals", SimpleNamespace(received=15))
    trainer: Any = SimpleNamespace(world_size=1, is_global_zero=True)
    checkpoint: Any = SimpleNamespace(find_due_save=lambda: 1)
    agreement = Agreement()
    found = [agreement.before_batch(trainer, checkpoint, between_steps) for between_steps in (True, True, False)]
    assert found == [(15, 1), (15, 1), (0, 0)]
    assert find_maxima(trainer, 3.0, 4.0) == (3.0, 4.0)


def test_last_is_saved_by_the_clock_since_its_last_save(monkeypatch: Any) -> None:
    clock: Any = SimpleNamespace(monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr("callbacks.run_checkpoint.time", clock)
    checkpoint = RunCheckpoint(last_every_minutes=5)
    assert checkpoint.find_due_save() == 0
    checkpoint._last_saved = 1000.0
    clock.now = 1299.0
    assert checkpoint.find_due_save() == 0
    clock.now = 1300.0
    assert checkpoint.find_due_save() == 1
    assert RunCheckpoint().last_every_minutes == 5
    never = RunCheckpoint(last_every_minutes=None)
    never._last_saved = -1e9
    assert never.find_due_save() == 0


def test_clock_saves_leave_the_best_checkpoints_alone(tmp_path: Path) -> None:
    short = ["--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1}]", "--trainer.limit_val_batches=0"]
    main([*COMMON, *short, f"--runs_dir={tmp_path}", "--checkpoint.last_every_minutes=1e-9"])
    assert [file.name for file in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]
    assert read_checkpoint(next(tmp_path.rglob("*.ckpt")))["global_step"] == 6


@pytest.mark.parametrize("minutes", ["0", "-1", ".nan"])
def test_minutes_without_meaning_are_refused(minutes: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([*COMMON, f"--runs_dir={tmp_path}", f"--checkpoint.last_every_minutes={minutes}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "last_every_minutes must be above 0, or null for no limit, got" in line
