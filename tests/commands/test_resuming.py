"""Checkpoints that a run saves, resuming from them, and refusing those that do not fit."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from cli import main
from commands.checkpoint_io import WholeFileIO, find_newest_readable
from rampart.files.weight_files import read_checkpoint
from tests.commands.test_chaos import COMMON

SCORES = [0.3, 0.9, 0.2, 0.4, 0.1]


class Scores(Callback):
    """Log a validation metric with a known value per epoch."""

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/score", SCORES[trainer.current_epoch % 5])


class StopWithinEpoch(Callback):
    """End the run within the second epoch, as ``trainer.max_time`` does."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 3


def fit(folder: Path, *arguments: str, epochs: int = 5, scores: bool = True) -> Path:
    """Run `fit` in-process and return its folder."""
    callbacks = ["--trainer.callbacks=tests.commands.test_resuming.Scores", "--checkpoint.monitor=val/score"]
    main([
        *COMMON, f"--runs_dir={folder}", *(callbacks if scores else []), "--trainer.limit_train_batches=2",
        f"--trainer.max_epochs={epochs}", f"--ramp.phases=[{{epochs: {epochs}, end_eps: 0.1}}]", *arguments,
    ])  # fmt: skip
    return max((folder / "run").glob("fit-*"), key=lambda run: int(run.name.split("-")[1]))


def names(run: Path) -> set[str]:
    return {file.name for file in (run / "checkpoints").iterdir()}


def read_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("RunCheckpoint"))
    assert isinstance(state, dict)
    return state


def failure(capsys: Any, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        main(list(arguments))
    assert status.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    return str(lines[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of five epochs that keeps all checkpoints."""
    return fit(tmp_path_factory.mktemp("whole"), "--checkpoint.save_top_k=-1")


def test_the_last_epoch_is_saved_whether_or_not_it_is_better(whole: Path) -> None:
    assert read_checkpoint(whole / "checkpoints/last.ckpt")["global_step"] == 10
    assert (
        Path(read_state(read_checkpoint(whole / "checkpoints/last.ckpt"))["best_model_path"]).name
        == "epoch1-step4.ckpt"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.val_size=0"],
        ["--checkpoint.save_top_k=0"],
        ["--checkpoint.monitor=null", "--checkpoint.every_n_train_steps=3"],
        ["--checkpoint.every_n_train_steps=100"],
        ["--checkpoint.save_last=link"],
        ["--trainer.check_val_every_n_epoch=2"],
    ],
    ids=str,
)
def test_the_end_of_training_is_saved(tmp_path: Path, arguments: list[str]) -> None:
    run = fit(tmp_path, *arguments, epochs=2, scores="--data.val_size=0" not in arguments)
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_resumed_run_has_the_best_checkpoints_of_the_whole_run(
    whole: Path, tmp_path: Path, epoch: int, top_k: int
) -> None:
    old = {file: file.read_bytes() for file in whole.rglob("*.ckpt")}
    resumed = whole / f"checkpoints/epoch{epoch}-step{2 * epoch + 2}.ckpt"
    run = fit(tmp_path, f"--ckpt_path={resumed}", f"--checkpoint.save_top_k={top_k}")
    state = read_state(read_checkpoint(run / "checkpoints/last.ckpt"))
    best = sorted(range(5), key=lambda at: -SCORES[at])[:top_k]
    assert {Path(path).name for path in state["best_k_models"]} == {f"epoch{at}-step{2 * at + 2}.ckpt" for at in best}
    assert Path(state["best_model_path"]) == run / "checkpoints/epoch1-step4.ckpt"
    assert float(state["best_model_score"]) == pytest.approx(0.9)
    assert read_checkpoint(state["best_model_path"])["global_step"] == 4
    assert {file: file.read_bytes() for file in old} == old


def test_a_run_that_ended_within_an_epoch_resumes_within_it(whole: Path, tmp_path: Path) -> None:
    first = fit(tmp_path, "--trainer.callbacks+=tests.commands.test_resuming.StopWithinEpoch")
    checkpoint = first / "checkpoints/last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 3
    second = fit(tmp_path, f"--ckpt_path={checkpoint}")
    resumed, uninterrupted = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (second, whole))
    assert (resumed["global_step"], resumed["epoch"]) == (uninterrupted["global_step"], uninterrupted["epoch"])
    weights = uninterrupted["state_dict"]
    assert all(torch.equal(resumed["state_dict"][name], weights[name]) for name in weights)


def test_a_twice_resumed_run_keeps_the_best_checkpoint_of_a_deleted_first_run(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole / "checkpoints", moved)
    first = fit(tmp_path, f"--ckpt_path={moved / 'epoch2-step6.ckpt'}", "--checkpoint.save_top_k=2")
    shutil.rmtree(moved)
    second = fit(tmp_path, f"--ckpt_path={first / 'checkpoints/last.ckpt'}")
    assert names(second) == {"epoch1-step4.ckpt"}  # training had ended already
    third = fit(tmp_path, f"--ckpt_path={first / 'checkpoints/epoch3-step8.ckpt'}")
    state = read_state(read_checkpoint(third / "checkpoints/last.ckpt"))
    assert Path(state["best_model_path"]) == third / "checkpoints/epoch1-step4.ckpt"


def test_a_missing_best_checkpoint_is_reported_in_one_line(whole: Path, tmp_path: Path, caplog: Any) -> None:
    shutil.copy(whole / "checkpoints/epoch2-step6.ckpt", tmp_path / "alone.ckpt")
    run = fit(tmp_path, f"--ckpt_path={tmp_path / 'alone.ckpt'}")
    assert "The best checkpoint so far, epoch1-step4.ckpt (val/score 0.9000), is not in the folder of" in caplog.text
    state = read_state(read_checkpoint(run / "checkpoints/last.ckpt"))
    assert Path(state["best_model_path"]).name == "epoch3-step8.ckpt"


def test_the_tested_checkpoint_is_the_best_of_the_whole_run(whole: Path, tmp_path: Path, capfd: Any) -> None:
    resumed = whole / "checkpoints/epoch2-step6.ckpt"
    run = fit(tmp_path, f"--ckpt_path={resumed}", "--test_after_fit=true", "--trainer.limit_test_batches=1")
    assert f"Checkpoint: {run / 'checkpoints/epoch1-step4.ckpt'}" in capfd.readouterr().out


@pytest.mark.parametrize("own", [[], ["--trainer.callbacks=pytorch_lightning.callbacks.ModelCheckpoint"]], ids=str)
def test_no_path_in_a_checkpoint_is_followed(tmp_path: Path, own: list[str]) -> None:
    first = fit(tmp_path, "--checkpoint.monitor=null", *own, epochs=2, scores=False)
    victims = [tmp_path / "victim", tmp_path / "victim2"]
    for victim in victims:
        victim.mkdir()
        (victim / "file").write_text("dear")
    last = first / "checkpoints/last.ckpt"
    for path in (
        f"local://{victims[0]}",
        f"{last.parent}/../../../victim2",
        f"file://{victims[0]}",
        str(victims[0] / "file"),
    ):
        checkpoint = torch.load(last, weights_only=True)
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
                    state[key] = path
                state["best_k_models"] = {path: torch.tensor(0.5)}
                state["dirpath"] = str(victims[0])
        torch.save(checkpoint, tmp_path / "evil.ckpt")
        fit(
            tmp_path, "--checkpoint.monitor=null", *own, f"--ckpt_path={tmp_path / 'evil.ckpt'}", epochs=4, scores=False
        )
    assert all((victim / "file").read_text() == "dear" for victim in victims)
    assert names(first) >= {"epoch1-step4.ckpt", "last.ckpt"}


MISMATCHES = [
    (lambda c: c, ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"], "model.optimizer Adam, this run has SGD"),
    (lambda c: c.pop("optimizer_classes") and c, ["--model.optimizer=SGD"], "betas"),
    (lambda c: c, ["--model.optimizer=torch.optim.AdamW"], "model.optimizer Adam, this run has AdamW"),
    (
        lambda c: c,
        ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1"],
        "model.lr_scheduler none, this run has StepLR",
    ),
    (lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(2, 2)), [], "exp_avg of parameter 0"),
    (lambda c: c.pop("loops"), [], "loops"),
    (lambda c: c["loops"].pop("fit_loop"), [], "fit_loop"),
    (lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed="x"), [], "must be a whole number"),
    (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"), [], "lr must be a number, got 'x'"),
    (lambda c: c["loops"]["fit_loop"].pop("epoch_loop.batch_progress"), [], "epoch_loop.batch_progress"),
    (lambda c: c.pop("optimizer_states"), [], "save_weights_only"),
    (lambda c: c.pop("lr_schedulers"), [], "save_weights_only"),
    (lambda c: c.update(callbacks=[1]), [], "callbacks' state"),
    (lambda c: c.update({"pytorch-lightning_version": "x"}), [], "layout"),
    (lambda c: c, ["--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1}]"], "at least 5"),
]


@pytest.mark.parametrize(("spoil", "arguments", "message"), MISMATCHES)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_remedy(
    whole: Path, tmp_path: Path, capsys: Any, spoil: Any, arguments: list[str], message: str
) -> None:
    checkpoint = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    spoil(checkpoint)
    path = tmp_path / "other.ckpt"
    torch.save(checkpoint, path)
    line = failure(capsys, *COMMON, f"--runs_dir={tmp_path}", f"--ckpt_path={path}", *arguments)
    assert message in line
    assert str(path) in line
    assert "init_from" in line or "max_epochs" in line  # The middle of a long line is cut out.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path=http://somewhere/a.ckpt"], "must be a file on this machine, got 'http://somewhere/a.ckpt'"),
        (["--ckpt_path=s3://bucket/a.ckpt"], "download it first"),
        (["--ckpt_path=hpc"], "must be a file, got 'hpc'"),
        (["--ckpt_path=registry:model"], "must be a file, got 'registry:model'"),
        (["--ckpt_path=tests"], "tests is a folder: give one file"),
        (["--weights_only=false"], "nothing in a file is ever executed"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_ckpt_path_that_is_no_file_is_explained(
    tmp_path: Path, capsys: Any, command: str, arguments: list[str], message: str
) -> None:
    options = [option for option in COMMON[1:] if command == "fit" or "test_after_fit" not in option]
    assert message in failure(capsys, command, *options, f"--runs_dir={tmp_path}", *arguments)


def test_initial_weights_for_a_resumed_run_are_refused(whole: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    last = whole / "checkpoints/last.ckpt"
    options = [f"--runs_dir={tmp_path}", f"--ckpt_path={last}"]
    assert "exclude each other" in failure(capsys, *COMMON, *options, "--ramp.init_from", str(last))
    (tmp_path / "c.yaml").write_text(f"ramp: {{init_from: {last}}}\n")
    main([COMMON[0], "--config", str(tmp_path / "c.yaml"), *COMMON[1:], *options])
    assert f"ramp.init_from {last} is not used" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint.monitor=val/nope"],
        ["--checkpoint.monitor=train/nope"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/nope"],
    ],
)
def test_a_metric_that_is_never_logged_is_refused_before_the_second_batch(
    tmp_path: Path, capsys: Any, arguments: list[str]
) -> None:
    options = [option for option in COMMON if not option.startswith("--trainer.callbacks")]
    line = failure(capsys, *options, f"--runs_dir={tmp_path}", *arguments)
    assert "monitor must be a metric that the run logs, got" in line
    assert "val/clean_acc, val/robust_acc" in line
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("monitor", ["val/clean_acc", "train/adv_acc", "train/adv_loss"])
def test_a_logged_metric_can_be_monitored(tmp_path: Path, monitor: str) -> None:
    run = fit(tmp_path, f"--checkpoint.monitor={monitor}", epochs=1)
    assert "epoch0-step2.ckpt" in names(run)


def test_the_hpc_keyword_unpickles_nothing(tmp_path: Path, capsys: Any) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'trace'}",)

    torch.save({"state_dict": Payload()}, tmp_path / "hpc_ckpt_1.ckpt")
    failure(
        capsys, *COMMON, "--ckpt_path=hpc", f"--trainer.default_root_dir={tmp_path}", "--weights_only=false",
        f"--runs_dir={tmp_path / 'runs'}",
    )  # fmt: skip
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_broken_newest_checkpoint_does_not_hide_an_older_one(
    whole: Path, tmp_path: Path, capsys: Any, command: str
) -> None:
    folder = tmp_path / "check points"
    shutil.copytree(whole / "checkpoints", folder)
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-3000])
    (folder / "epoch4-step10.ckpt").write_bytes(b"")
    options = [option for option in COMMON[1:] if command == "fit" or "test_after_fit" not in option]
    line = failure(capsys, command, *options, f"--runs_dir={tmp_path}", f"--ckpt_path={folder / 'last.ckpt'}")
    assert f"--ckpt_path '{folder / 'epoch3-step8.ckpt'}'" in line
    assert find_newest_readable(folder.iterdir()) == folder / "epoch3-step8.ckpt"


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_kill_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: Any, moment: str) -> None:
    writer, path = WholeFileIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"global_step": 1}, path)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, kill)
        with pytest.raises(KeyboardInterrupt):
            writer.save_checkpoint({"global_step": 2}, path)
    assert read_checkpoint(path) == {"global_step": 1}
    # Unfinished files of dead processes are removed, those of living ones are not.
    (dead,) = tmp_path.glob(".*.tmp")
    dead.rename(dead.with_name(dead.name.replace(str(os.getpid()), "99999999")))
    other = tmp_path / ".last.ckpt.elsewhere.1.tmp"
    other.touch()
    writer.save_checkpoint({"global_step": 3}, path)
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", other.name}


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    writer, path = WholeFileIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"global_step": 1}, path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=f"{path} could not be written .No space left on device"):
            writer.save_checkpoint({"global_step": 2}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path) == {"global_step": 1}


def test_the_temporary_folder_is_not_used(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    WholeFileIO().save_checkpoint({"global_step": 1}, tmp_path / "a/last.ckpt")
    assert read_checkpoint(tmp_path / "a/last.ckpt") == {"global_step": 1}


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").touch()
    writer = WholeFileIO()
    writer.save_checkpoint({}, tmp_path / "own.ckpt")
    for name in ("old.ckpt", "own.ckpt"):
        writer.remove_checkpoint(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["old.ckpt"]
