"""The grid of trainings at large eps: plan, records, resuming, tables."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.large_eps import grid, training
from experiments.large_eps.plan import CALLBACK, DATA, INITS, METHODS, SEEDS, Training, list_trainings
from experiments.large_eps.results import find_largest_learned, format_tables, has_learned, plot_records
from experiments.large_eps.training import InterruptedTraining, Setting, count_events, list_words
from tests.commands.test_messages import ParsesOnly

NAIVE, IAT = (Training("digits", method, "default", "0.4", 0) for method in ("naive", "iat"))
MACHINE = {"commit": "c0ffee", "processor": "a processor", "gpus": [], "threads": 1}


@pytest.fixture(scope="module")
def cli() -> ParsesOnly:
    return ParsesOnly.make()


def make_record(of: Training, robust: float = 0.5, **changes: Any) -> dict[str, Any]:
    results = {
        "error": None, "clean": 0.9, "robust": robust, "images": 500, "classes": 10, "top_share": 0.1,
        "collapsed": False, "gradient_evaluations": 128_000, "steps": 1000, "loss": 1.2, "largest_eps": 0.4,
        "last_eps": 0.4, "alarms": 0, "recoveries": 0, "fit_seconds": 50.0, "seconds": 60.0, "torch": "2.14.1",
    }  # fmt: skip
    return vars(of) | results | MACHINE | changes


def write_run(setting: Setting, of: Training) -> None:
    """Write the files that the results of a finished training are read from."""
    folder = setting.runs / of.name / "fit-0"
    (folder / "checkpoints").mkdir(parents=True)
    test = {"results": [{"accuracy": 0.11}, {"accuracy": 0.1}], "fit_seconds": 3.5, "versions": {"torch": "2.14.1"}}
    (folder / "test.json").write_text(json.dumps(test | MACHINE))
    (folder / "summary.json").write_text(json.dumps({"predicted": [0, 95, *[0] * 7, 5], "loss": 2.3026}))


def test_the_most_informative_trainings_come_first() -> None:
    trainings = list_trainings(DATA, METHODS, INITS, (), SEEDS)
    assert len(set(trainings)) == len({each.name for each in trainings}) == 2 * 4 * 5 * 3 * 3
    assert [each.seed for each in trainings] == sorted(each.seed for each in trainings)
    first = trainings[: 2 * len(METHODS)]
    assert {(each.init, each.target) for each in first} == {("default", "0.4"), ("default", "32/255")}
    assert list_trainings(["digits"], ["naive"], ["he"], ["0.45"], [2]) == [
        Training("digits", "naive", "he", "0.45", 2)
    ]


@pytest.mark.parametrize(
    ("each", "first"),
    [(Training("digits", "iat", "he", "0.4", 1), 0), (Training("cifar10", "extended", "he", "32/255", 1), "16/255")],
)
def test_options_parse_and_phases_last_as_long_as_the_config(
    cli: ParsesOnly, each: Training, first: str | int, tmp_path: Path
) -> None:
    cli.parse_arguments(cli.parser, list_words(each, Setting(tmp_path, tmp_path)))
    config = cli.config["fit"]
    assert config.model.init_args.network.init_args.init == "he"
    assert config.trainer.callbacks[0].class_path == CALLBACK
    phases = config.ramp.phases
    assert sum(phase.epochs for phase in phases) == config.trainer.max_epochs == 10
    assert phases[0].get("start_eps", phases[0].end_eps) == first
    assert str(phases[-1].end_eps) == each.target


def test_the_options_of_the_adaptive_ramp_parse(cli: ParsesOnly, tmp_path: Path) -> None:
    cli.parse_arguments(cli.parser, list_words(Training("digits", "adaptive", "xavier", "0.45", 0), Setting(tmp_path)))
    assert cli.config["fit"].ramp.adaptive is True


def test_finished_trainings_are_kept_and_failed_ones_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def train(each: Training, _setting: Setting) -> dict[str, Any]:
        calls.append(each.method)
        if each.method == "naive" and len(calls) == 1:
            return vars(each) | {"error": "exit status 1: broken", "arguments": [], "seconds": 1.0}
        if each.method == "extended" and calls.count("extended") == 1:
            raise InterruptedTraining("ended by signal 9")
        return make_record(each)

    monkeypatch.setattr(grid, "train", train)
    words = ["--data=digits", "--targets=0.4", "--inits=default", "--seeds=0", "--processes=1", f"--out={tmp_path}"]
    words += ["--methods", "naive", "extended", "iat"]
    with pytest.raises(SystemExit, match=r"extended-default-0\.4-seed-0: InterruptedTraining: ended by signal 9"):
        grid.main(words)
    assert calls == ["naive", "extended", "iat"]
    assert "- digits-naive-default-0.4-0: `exit status 1: broken`" in (tmp_path / "README.md").read_text()
    grid.main(words)
    assert calls[3:] == ["extended"]
    grid.main([*words, "--retry"])
    assert calls[4:] == ["naive"]
    kept = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert sorted(record["method"] for record in kept) == ["extended", "iat", "naive"]
    assert not any(record["error"] for record in kept)
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(SystemExit, match=r"has trainings with the options \[\]: give these, or another --out"):
        grid.main([*words, "--", "--trainer.max_epochs=1"])
    assert "2 of 3 trainings are finished, kept" in capsys.readouterr().out


def test_no_training_starts_that_would_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "train", lambda each, _: make_record(each, seconds=60.0))
    trial = grid.Grid(tmp_path, Setting(tmp_path), minutes=0.5)
    trial.run([NAIVE, IAT], processes=1)
    assert [record["method"] for record in trial.records] == ["naive"]  # the length is known after one


def test_a_training_leaves_a_record_and_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path)
    (tmp_path / NAIVE.name / "fit-0").mkdir(parents=True)  # of an interrupted call

    def run_command(words: Sequence[str], output: Path, deadline: float, environment: dict[str, str]) -> int:
        assert environment == {"OMP_NUM_THREADS": "1"}
        assert deadline > time.monotonic()
        output.write_text("\n".join(words))
        write_run(setting, NAIVE)
        return 0

    monkeypatch.setattr(training, "run_command", run_command)
    record = training.train(NAIVE, setting)
    assert (record["robust"], record["top_share"], record["collapsed"], record["alarms"]) == (0.1, 0.95, True, 0)
    assert record["error"] is None
    assert "--runs_dir=RUNS" in record["arguments"]
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("code", "error"), [(1, "exit status 1: eps must be below 1"), (None, "no end after 1800 seconds")]
)
def test_a_failed_training_gives_its_last_line(
    code: int | None, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_command(_words: Sequence[str], output: Path, *_: Any) -> int | None:
        output.write_text("one\neps must be below 1\n\n")
        return code

    monkeypatch.setattr(training, "run_command", run_command)
    assert training.train(NAIVE, Setting(tmp_path))["error"] == error


@pytest.mark.parametrize("code", [-9, 143])
def test_a_training_that_a_signal_ended_has_no_record(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "run_command", lambda *_: code)
    with pytest.raises(InterruptedTraining, match=f"ended by signal {9 if code < 0 else 15}"):
        training.train(NAIVE, Setting(tmp_path))


def test_alarms_and_recoveries_of_the_guard_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert count_events(file) == {"alarms": 0, "recoveries": 0}
    file.write_text('{"step": 40, "action": "recover"}\n{"step": 400, "action": "warn"}\n')
    assert count_events(file) == {"alarms": 2, "recoveries": 1}


def test_tables_have_the_largest_eps_that_each_seed_has_learned() -> None:
    records = [
        make_record(Training("digits", "iat", "default", target, seed), robust)
        for target, seed, robust in (("0.35", 0, 0.6), ("0.4", 0, 0.4), ("0.45", 0, 0.15), ("0.4", 1, 0.1))
    ]
    records.append(vars(NAIVE) | {"error": "exit status 1: broken", "seconds": 1.0})
    assert [has_learned(record) for record in records] == [True, True, False, False, False]
    assert find_largest_learned(records[:4]) == {0: "0.4", 1: None}
    table = format_tables(records)
    row = "| default | iat |  | 60.0 | 25.0 (10.0 to 40.0) | 15.0 | 0.4, none | 0 of 4 | 0 | 89% | 128 | 4 |"
    assert row in table
    assert "| default | naive |  |  | 1 failed |  | none |" in table
    assert "- a processor, torch 2.14.1; commits c0ffee" in table
    both = [*records[:4], make_record(Training("cifar10", "naive", "he", "16/255", 0))]
    assert len(plot_records(both).axes) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data-dir must be given, the folder with CIFAR-10: give it, or --data digits"),
        (["--data-dir=nowhere"], "--data-dir must be a folder that holds CIFAR-10, got nowhere"),
        (["--data=digits", "--processes=0"], "--processes must be at least 1, got 0"),
    ],
)
def test_bad_options_give_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grid.main(words)
    assert message in capsys.readouterr().err.splitlines()[-1]
