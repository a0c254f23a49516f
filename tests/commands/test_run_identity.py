"""Restarted jobs and ``--ckpt_path auto`` continue a run in its own folder; other commands start a new one."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from cli import main
from commands import interruption_callback, run_identity
from commands.run_checkpoints import choose_checkpoint, find_checkpoints
from commands.run_identity import RECORD, find_run, hold_run, read_record, release_run, write_record
from commands.tensorboard_records import rewind_curves
from rampart.files.weight_files import read_checkpoint
from tests.commands.test_chaos import COMMON, Killed, Killer, assert_equal, read_best

RUN = [
    *(argument for argument in COMMON if "logger" not in argument), "--ckpt_path=auto", "--trainer.max_epochs=4",
    "--ramp.phases=[{epochs: 4, start_eps: 0, end_eps: 0.4}]",
    "--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=2", "--images.num_images=2",
    "--images.every_n_epochs=1",
]  # fmt: skip


def start(folder: Path, *arguments: str, kill_after: int | None = None) -> None:
    Killer.after = kill_after
    try:
        main([*RUN, f"--runs_dir={folder}", *arguments])
    except Killed:
        assert kill_after is not None


def names(folder: Path) -> list[str]:
    return sorted(run.name for run in (folder / "run").iterdir())


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    start(folder)
    return folder / "run" / "fit-0"


def test_a_killed_run_is_continued_in_its_folder_and_ends_like_the_uninterrupted_one(
    whole: Path, tmp_path: Path, caplog: Any
) -> None:
    for moments in (3, 25, 39):
        start(tmp_path, kill_after=moments)
    start(tmp_path)
    assert names(tmp_path) == ["fit-0"]
    run = tmp_path / "run" / "fit-0"
    assert f"This run continues in {run}, from {run / 'checkpoints' / 'last.ckpt'}" in caplog.text
    one, other = (read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (whole, run))
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(one[key], other[key], key)
    assert read_best(one) == read_best(other)
    assert len({file.name for file in run.glob("checkpoints/*")}) == 2  # the last and the best; nothing renamed
    for tag in ("train/adv_loss", "val/robust_acc"):
        assert curve(run, tag) == curve(whole, tag)
    images = [EventAccumulator(str(folder), size_guidance={"images": 0}).Reload() for folder in (whole, run)]
    steps = [[image.step for image in board.Images("adversarial_images")] for board in images]
    assert steps[0] == steps[1]


def test_a_finished_run_is_not_trained_again(whole: Path, tmp_path: Path) -> None:
    start(tmp_path, "--checkpoint.monitor=null", kill_after=25)
    start(tmp_path, "--checkpoint.monitor=null")
    before = read_checkpoint(tmp_path / "run/fit-0/checkpoints/last.ckpt")
    start(tmp_path, "--checkpoint.monitor=null")
    assert names(tmp_path) == ["fit-0"]
    assert_equal(before, read_checkpoint(tmp_path / "run/fit-0/checkpoints/last.ckpt"))
    assert len(list(tmp_path.rglob("*.ckpt"))) == 2  # the last and the kept one; none of the killed process is left


def test_other_settings_start_a_new_run_and_are_named(tmp_path: Path, caplog: Any) -> None:
    start(tmp_path, "--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1}]")
    assert "there is no earlier run" in caplog.text
    start(tmp_path, "--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.2}]")
    assert names(tmp_path) == ["fit-0", "fit-1"]
    assert "(fit-0 differs in ramp.phases)" in caplog.text


def test_a_command_without_auto_starts_a_new_run(tmp_path: Path) -> None:
    short = ["--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1}]"]
    start(tmp_path, *short)
    main([*(word for word in RUN if "ckpt_path" not in word), f"--runs_dir={tmp_path}", *short])
    assert names(tmp_path) == ["fit-0", "fit-1"]


def make_run(parent: Path, number: int, config: str, job: str | None, requeued: bool = False) -> Path:
    folder = parent / f"fit-{number}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / RECORD).write_text(json.dumps({"job": job, "requeued": requeued}))
    return folder


def test_a_restarted_job_finds_its_own_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, other = "name: a\nmodel: {eps: 0.4}\nckpt_path: x\n", "name: a\nmodel: {eps: 0.3}\n"
    make_run(tmp_path, 9, config, "slurm 7")
    own = make_run(tmp_path, 10, config, "slurm 7")
    make_run(tmp_path, 11, other, "slurm 7")
    make_run(tmp_path, 12, config, "slurm 8")
    make_run(tmp_path, 13, config, None)
    (tmp_path / "fit-14").mkdir()
    again = "name: b\nmodel: {eps: 0.4}\nckpt_path: null\n"
    assert find_run(tmp_path, again, asked=False) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert find_run(tmp_path, again, asked=False) is None
    write_record(own, requeued=True)
    assert find_run(tmp_path, again, asked=False) == own
    write_record(own, requeued=False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_run(tmp_path, again, asked=False) == own
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert find_run(tmp_path, again, asked=True) == tmp_path / "fit-13"


def test_a_process_that_torchrun_starts_again_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "experiment")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/files/torchelastic_1/experiment_x/attempt_0/0/error.json")
    own = make_run(tmp_path, 1, "name: a\n", None)
    assert find_run(tmp_path, "name: a\n", asked=False) is None
    write_record(own, requeued=False)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/files/torchelastic_1/experiment_x/attempt_1/0/error.json")
    assert find_run(tmp_path, "name: a\n", asked=False) == own
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/files/torchelastic_2/experiment_y/attempt_0/0/error.json")
    assert find_run(tmp_path, "name: a\n", asked=False) is None  # a later torchrun, with the same --rdzv-id


@pytest.mark.parametrize("queued", ["the job is in the queue", ""])
def test_a_job_that_could_not_be_requeued_has_no_record_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(interruption_callback, "requeue", lambda *_, **__: queued)
    strategy = SimpleNamespace(barrier=lambda: None)
    trainer: Any = SimpleNamespace(is_global_zero=True, run_folder=tmp_path, logger=None, strategy=strategy)
    trainer.default_root_dir = str(tmp_path)
    assert interruption_callback._requeue(trainer, signal.SIGUSR1) == queued
    assert read_record(tmp_path)["requeued"] is bool(queued)


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_identity, "WAIT_SECONDS", 0.1)
    try:
        hold_run(tmp_path)
        assert read_record(tmp_path) == {"job": None, "torchrun": None, "requeued": False}
        with pytest.raises(ValueError, match="is still in use by another process, which trains this run: wait until"):
            hold_run(tmp_path)
    finally:
        release_run()
    hold_run(tmp_path)
    release_run()


def test_a_run_continues_from_its_own_checkpoints_in_a_folder_that_runs_share(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    keeping = [f"--checkpoint.dirpath={shared}", "--checkpoint.filename=best", "--checkpoint.save_top_k=3"]
    start(tmp_path, *keeping, "--seed_everything=1", kill_after=40)
    others = {file.name: file.read_bytes() for file in shared.iterdir()}
    start(tmp_path, *keeping, kill_after=40)
    own = {file.name: file.read_bytes() for file in shared.iterdir() if file.name not in others}
    start(tmp_path, *keeping)
    assert names(tmp_path) == ["fit-0", "fit-1"]
    resumed = [*keeping, "--checkpoint.save_top_k=1", "--seed_everything=1", f"--ckpt_path={shared / 'last.ckpt'}"]
    start(tmp_path, *resumed)
    assert names(tmp_path) == ["fit-0", "fit-1", "fit-2"]
    assert {name: (shared / name).read_bytes() for name in others} == others
    best = [name for name in own if name.startswith("best")]
    assert best
    assert all((shared / name).read_bytes() == own[name] for name in best)
    assert read_checkpoint(shared / "last-v1.ckpt")["global_step"] == 24


def save(file: Path, step: int, **content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step, "state_dict": {}} | content, file)
    return file


def test_the_checkpoints_of_a_run_are_those_in_its_folder_and_those_that_it_saved_elsewhere(tmp_path: Path) -> None:
    folder, shared = tmp_path / "run" / "fit-0", tmp_path / "shared"
    inside = save(folder / "checkpoints" / "last.ckpt", 1)
    own = save(shared / "last-v1.ckpt", 2, run_folder=str(folder))
    save(shared / "last.ckpt", 3, run_folder=str(tmp_path / "run" / "fit-1"))
    (shared / "damaged.ckpt").write_bytes(b"")
    assert find_checkpoints(folder, folder / "checkpoints") == [inside]
    assert find_checkpoints(folder, shared) == [inside, own]
    assert find_checkpoints(folder, None) == [inside]


def test_a_run_continues_from_the_newest_checkpoint_that_resumes_training(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"loops": {}, "optimizer_states": []}
    older, newer = save(tmp_path / "b.ckpt", 4, **whole), save(tmp_path / "a.ckpt", 5, **whole)
    weights = save(tmp_path / "weights.ckpt", 6)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"PK")
    assert choose_checkpoint([older, newer, weights, damaged]) == newer
    assert choose_checkpoint([weights]) is None
    with pytest.raises(ValueError, match=r"weights\.ckpt holds weights alone"):
        choose_checkpoint([weights], weights_only=True)
    with pytest.raises(ValueError, match=r"damaged\.ckpt can't be read, and this run has no other checkpoint"):
        choose_checkpoint([weights, damaged])


def test_a_run_without_an_own_checkpoint_continues_from_the_one_that_it_was_started_from(tmp_path: Path) -> None:
    start(tmp_path, kill_after=45)
    file = tmp_path / "run" / "fit-0" / "checkpoints" / "last.ckpt"
    Killer.after = 1
    with pytest.raises(Killed):
        main([*(word for word in RUN if "ckpt_path" not in word), f"--runs_dir={tmp_path}", f"--ckpt_path={file}"])
    linked = list((tmp_path / "run" / "fit-1").rglob("*.ckpt"))
    assert [read_checkpoint(each)["global_step"] for each in linked] == [6]  # the best one, linked
    start(tmp_path, kill_after=1)
    folder = tmp_path / "run" / "fit-1"
    assert curve(folder, "train/loss")[-1][0] == read_checkpoint(file)["global_step"] - 1


def test_a_figure_is_shown_once_after_several_restarts(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_image("adversarial_images", torch.zeros(3, 2, 2), 6)
    writer.close()
    for _ in range(3):
        rewind_curves(tmp_path, 6)
    board = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [image.step for image in board.Images("adversarial_images")] == [6]


def test_a_damaged_record_is_that_of_no_job(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    assert read_record(tmp_path) == {}
    (tmp_path / RECORD).write_text("[]")
    assert read_record(tmp_path) == {}


@pytest.mark.parametrize("command", ["test", "evaluate"])
def test_auto_is_refused_where_nothing_is_resumed(tmp_path: Path, capsys: Any, command: str) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                command,
                "--ckpt_path=auto",
                "--data=DigitsDataModule",
                "--model=MNISTClassifier",
                f"--runs_dir={tmp_path}",
            ]
        )
    assert "ckpt_path auto is for fit" in capsys.readouterr().err
