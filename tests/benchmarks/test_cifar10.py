"""The benchmark that makes the CIFAR-10 tables: order of the runs, resuming, records, tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hubconf
from benchmarks import cifar10
from benchmarks.cifar10_runs import ship, training
from benchmarks.cifar10_runs.budget import Budget
from benchmarks.cifar10_runs.evaluation import evaluate_words, read_report
from benchmarks.cifar10_runs.length import (
    Speed,
    choose_epochs,
    count_evaluations,
    predict_seconds,
    scale_config,
    split_epochs,
)
from benchmarks.cifar10_runs.plan import BY_CONFIG, Job, Task, list_jobs, run_tasks
from benchmarks.cifar10_runs.results import format_table, plot_records
from benchmarks.cifar10_runs.setting import CommandError, Setting
from rampart.networks import ResNet18
from tests.conftest import ROOT

NETWORK = {"class_path": "rampart.networks.ResNet18", "init_args": {"width": 1}}
MADRY, EXTENDED = Job(BY_CONFIG["cpu_madry_8"], 0), Job(BY_CONFIG["cpu_extended_16"], 0)


def rate(count: int, images: int) -> dict[str, Any]:
    return {"count": count, "accuracy": count / images, "interval_95": [0.1, 0.9]}


def fake_record(run: str, seed: int, correct: int) -> dict[str, Any]:
    pgd = {
        "images": 20,
        "clean": rate(correct, 20),
        "robust": [rate(correct - number, 20) for number in (1, 2, 3)],
        "predicted": [20, *[0] * 9],
    }
    apgd = {"images": 10, "robust": [rate(correct - 4, 10)]}
    known = BY_CONFIG[run]
    head = {
        "run": run,
        "eps": known.eps,
        "from": known.start,
        "seed": seed,
        "steps": 200,
        "fit_seconds": 90.0,
        "epochs": 3,
    }
    return head | {"pgd": pgd, "apgd": apgd, "curves": {"val/robust_acc": [[1, 0.1], [2, 0.2]]}}


class Recorder(Setting):
    """Settings whose commands write what the command line would write, at once."""

    fails: Sequence[str] = ()
    calls: list[tuple[str, ...]]

    def run(self, job: Job, words: Sequence[str], deadline: float | None = None) -> float:
        self.calls.append((words[0], job.name, *(word for word in words if word.startswith("--ckpt_path"))))
        if words[0] == "fit":
            number = len(list((self.runs_dir / job.name).glob("fit-*")))
            folder = self.runs_dir / job.name / f"fit-{number}"
            (folder / "checkpoints").mkdir(parents=True)
            state = {f"network.{name}": value for name, value in ResNet18(width=1).state_dict().items()}
            callbacks = {"ResultsTableCallback": {"fit_seconds": 3.5}}
            content = {"state_dict": state, "global_step": 7, "callbacks": callbacks, "pytorch-lightning_version": "2"}
            torch.save(content, folder / "checkpoints" / "last.ckpt")
            config = {"trainer": {"max_epochs": 6}, "model": {"init_args": {"network": NETWORK}}}
            (folder / "config.yaml").write_text(json.dumps(config))
            if f"{job.name}, attempt {number}" in self.fails:
                raise CommandError("fit failed")
            with self.log(job).open("a") as log:
                log.write(f"Checkpoint: RUNS/{job.name}/{folder.name}/checkpoints/last.ckpt\n")
        else:
            name = next(word.removeprefix("--name=") for word in words if word.startswith("--name="))
            write_report(self.runs_dir / name / "evaluate-0", 3 if name.endswith("-pgd") else 1)
        return 1.0


def write_report(folder: Path, radii: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    robust = [{"eps": 2**number * 8 / 255, **rate(1, 4)} for number in range(radii)]
    report = {"images": 4, "clean": rate(2, 4), "robust": robust, "stages": [], "timings": []}
    signs = [{"name": "sign", "message": "text", "images": [0]}]
    (folder / "report.json").write_text(json.dumps(report | {"signs": signs, "search": {"weights": "f"}}))
    lines = ["index,label,clean_prediction,adv_prediction", "0,1,1,2", "1,1,1,1", "2,5,5,5", "3,0,1,1"]
    (folder / "per_image.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def setting(tmp_path: Path) -> Recorder:
    (tmp_path / "runs").mkdir()
    made = Recorder(tmp_path, tmp_path, tmp_path / "runs", images=20, apgd_images=10, batch_size=10)
    object.__setattr__(made, "calls", [])
    return made


def test_each_run_comes_after_the_one_that_it_starts_from_and_seeds_one_after_the_other() -> None:
    jobs = list_jobs(["cpu_extended_16", "cpu_madry_8", "twin"], [0, 1])
    assert len(jobs) == 10
    for job in jobs:
        assert job.start is None or jobs.index(job.start) < jobs.index(job)
    assert [job.seed for job in jobs] == [0] * 5 + [1] * 5


def test_a_run_without_its_start_names_what_to_give() -> None:
    with pytest.raises(ValueError, match="add madry_8 to --runs, or give its weights by --start madry_8=FILE"):
        list_jobs(["extended"], [0])
    assert list_jobs(["fast_32"], [3], known=[Job(BY_CONFIG["fast_16"], 3)])


def test_tasks_run_in_order_at_the_same_time_if_they_can_and_not_after_a_failure() -> None:
    done, both = [], Barrier(2, timeout=20)

    def fail() -> None:
        both.wait()
        raise CommandError("broken")

    tasks = [
        Task("a", fail),
        Task("b", lambda: done.append(f"b{both.wait()}"[0])),
        Task("c", lambda: done.append("c"), ["a"]),
        Task("d", lambda: done.append("d"), ["b"]),
        Task("e", lambda: done.append("e"), ["c"]),
    ]
    problems = run_tasks(tasks, 2, stop=lambda: None)
    assert done == ["b", "d"]
    assert problems == {
        "a": "CommandError: broken",
        "c": "left out, because a failed",
        "e": "left out, because c failed",
    }


def test_an_interruption_ends_the_running_tasks() -> None:
    stopped = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task("a", interrupt), Task("b", interrupt, ["a"])], 1, lambda: stopped.append(True))
    assert stopped == [True]


def test_finished_runs_are_kept_and_a_failed_training_is_resumed_once(setting: Recorder, tmp_path: Path) -> None:
    object.__setattr__(setting, "fails", ["cpu_madry_8-seed-0, attempt 0"])
    assert cifar10.run_jobs([MADRY, EXTENDED], setting, 1) == {}
    last = tmp_path / "runs" / MADRY.name / "fit-0" / "checkpoints" / "last.ckpt"
    assert setting.calls == [
        ("fit", MADRY.name),
        ("fit", MADRY.name, f"--ckpt_path={last}"),
        *[("evaluate", MADRY.name, f"--ckpt_path={setting.weights(MADRY)}")] * 2,
        ("fit", EXTENDED.name),
        *[("evaluate", EXTENDED.name, f"--ckpt_path={setting.weights(EXTENDED)}")] * 2,
    ]
    record = json.loads((tmp_path / f"{EXTENDED.name}.json").read_text())
    assert record["fit_seconds"] == 3.5
    assert record["from"] == "cpu_madry_8"
    assert str(tmp_path) not in json.dumps(record)
    assert record["start"]["sha256"] == json.loads((tmp_path / f"{MADRY.name}.json").read_text())["sha256"]
    assert "cpu_extended_16" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "figure.png").exists()
    assert {value.dtype for value in load_file(setting.weights(MADRY)).values()} == {torch.float16, torch.int64}
    assert cifar10.run_jobs([MADRY, EXTENDED], setting, 1) == {}
    assert len(setting.calls) == 7


def test_a_run_whose_evaluation_failed_is_not_trained_again(setting: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise CommandError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "evaluate", fail)
        assert list(cifar10.run_jobs([MADRY], setting, 1)) == [f"evaluate {MADRY.name}"]
    assert cifar10.run_jobs([MADRY], setting, 1) == {}
    assert [call[0] for call in setting.calls] == ["fit", "evaluate", "evaluate"]


def test_weights_are_shipped_with_the_record_of_the_same_bits(
    setting: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10.run_jobs([MADRY], setting, 1)
    monkeypatch.setattr(ship, "PRETRAINED", tmp_path / "pretrained" / "cifar10")
    monkeypatch.setattr(hubconf, "PRETRAINED", tmp_path / "pretrained")
    ship.main([str(tmp_path), MADRY.name, "tiny"])
    weights = tmp_path / "pretrained/cifar10/tiny/weights.safetensors"
    assert weights.read_bytes() == setting.weights(MADRY).read_bytes()
    capsys.readouterr()
    network = hubconf.cifar_resnet("tiny")
    assert capsys.readouterr().out == (
        "tiny: 50.0% clean; 25.0% at 8/255, 25.0% at 16/255, 25.0% at 32/255 under PGD-200 on 4 images; "
        "25.0% at 8/255 under APGD-CE and APGD-T on 4 images\n"
    )
    assert torch.equal(
        network.state_dict()["linear.weight"], load_file(setting.weights(MADRY))["linear.weight"].float()
    )
    record = json.loads((tmp_path / f"{MADRY.name}.json").read_text())
    del record["network"]  # as earlier records
    (tmp_path / f"{MADRY.name}.json").write_text(json.dumps(record))
    ship.main([str(tmp_path), MADRY.name, "earlier"])
    shipped = json.loads((tmp_path / "pretrained/cifar10/earlier/record.json").read_text())
    assert shipped["network"] == {"class_path": "rampart.networks.ResNet18", "init_args": {"width": 8}}
    for words, message in (
        ([MADRY.name, "tiny"], "exists; give another name"),
        ([EXTENDED.name, "other"], "is no finished run"),
        ([MADRY.name, "a/b"], "name must be letters"),
    ):
        with pytest.raises(SystemExit):
            ship.main([str(tmp_path), *words])
        assert message in capsys.readouterr().err
    setting.weights(MADRY).write_bytes(b"other")
    with pytest.raises(SystemExit):
        ship.main([str(tmp_path), MADRY.name, "other"])
    assert "their SHA-256 differ" in capsys.readouterr().err


def test_weights_that_float16_cannot_hold_raise(tmp_path: Path) -> None:
    weights = {"state_dict": {"network.bias": torch.tensor([1e6])}}
    with pytest.raises(ValueError, match="bias does not fit into float16"):
        training.save_half(weights, tmp_path / "weights.safetensors")


def test_pgd_has_all_eps_and_apgd_the_runs_own(setting: Recorder) -> None:
    pgd, apgd = (evaluate_words(EXTENDED, setting, kind, 20) for kind in ("pgd", "apgd"))
    assert "--eps=[8/255,16/255,32/255]" in pgd
    assert "--eps=[16/255]" in apgd
    attacks = next(word for word in apgd if word.startswith("--attacks="))
    assert [each["init_args"] for each in json.loads(attacks.partition("=")[2])] == [
        {"steps": 100},
        {"steps": 100, "targets": 9},
    ]


def test_a_report_keeps_counts_of_predictions_without_lists_of_images(tmp_path: Path) -> None:
    write_report(tmp_path, 3)
    found = read_report(tmp_path)
    assert found["predicted"] == [0, 3, 0, 0, 0, 1, 0, 0, 0, 0]
    assert found["predicted_under_attack"] == [0, 2, 1, 0, 0, 1, 0, 0, 0, 0]
    assert found["signs"] == [{"name": "sign", "message": "text"}]


def test_the_table_has_a_row_per_seed_means_chance_and_the_share_of_the_most_predicted_class() -> None:
    records = [fake_record("cpu_extended_16", seed, 8 + 2 * seed) for seed in (0, 1)]
    table = format_table(records)
    assert "| constant prediction |  |  | 10.0 | 10.0 |" in table
    assert "| cpu_extended_16 | cpu_madry_8 | 1 | 50.0 (10.0 to 90.0) | 45.0 (10.0 to 90.0)" in table
    assert "| 60.0 (10.0 to 90.0) @ 16/255 | 0: 100% | 3 | 1.5 |" in table
    assert "mean (range) of 2 seeds | cpu_madry_8 |  | 45.0 (40.0 to 50.0)" in table
    assert len(plot_records(records).axes) == 3


def test_with_a_budget_trainings_come_first_one_at_a_time_and_are_shortened(
    setting: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = yaml.safe_load((ROOT / "configs/cifar10/fast_16.yaml").read_text())
    config["trainer"]["precision"], config["execution"] = None, {}
    monkeypatch.setattr(Budget, "_read_config", lambda *_: config)
    probes = []

    def probe(_self: Budget, job: Job) -> Speed:
        probes.append(job)
        return Speed(evaluation=1.0, validation=0.0, start=0.0)

    monkeypatch.setattr(Budget, "_probe", probe)
    seconds = 187 * 378.0  # as long as one of the two whole trainings
    assert cifar10.run_jobs([MADRY, EXTENDED], setting, 2, seconds) == {}
    assert [call[0] for call in setting.calls[:2]] == ["fit", "fit"]
    assert probes == [MADRY]  # the other has the same network, objective and batches
    first, second = (
        yaml.safe_load((tmp_path / "runs" / f"{job.name}.length.yaml").read_text()) for job in (MADRY, EXTENDED)
    )
    assert first["trainer"]["max_epochs"] == sum(phase["epochs"] for phase in first["ramp"]["phases"]) == 15
    assert second["trainer"]["max_epochs"] > 30  # the first one took no time here
    for job in (MADRY, EXTENDED):
        (tmp_path / f"{job.name}.json").unlink()
    setting.weights(MADRY).unlink()
    object.__setattr__(setting, "calls", [])
    lengths: list[str] = []

    def recorded(job: Job, setting: Setting, options: Sequence[str] = (), deadline: float | None = None) -> None:
        lengths.extend(options)
        training.train(job, setting, options, deadline)

    monkeypatch.setattr(cifar10, "train", recorded)
    assert cifar10.run_jobs([MADRY, EXTENDED], setting, 2, seconds) == {}
    assert [call[:2] for call in setting.calls if call[0] == "fit"] == [("fit", MADRY.name)]
    assert lengths == [f"--config={tmp_path / 'runs' / MADRY.name}.length.yaml"]


def test_folders_inside_of_each_other_have_their_own_names_in_outputs(tmp_path: Path) -> None:
    setting = Setting(tmp_path, tmp_path / "out", tmp_path / "out" / "runs", images=20, apgd_images=10, batch_size=10)
    text = f"{tmp_path}/out/runs/fit-0 {tmp_path}/out/weights {tmp_path}/cifar-10-batches-bin"
    assert setting.hide_paths(text) == "RUNS/fit-0 FOLDER/weights DIR/cifar-10-batches-bin"


def test_shorter_phases_keep_their_proportions_and_the_last_epoch_is_validated() -> None:
    config = yaml.safe_load((ROOT / "configs/cifar10/fast_16.yaml").read_text())
    assert count_evaluations(config, 54) == 36 + 54 + 72 + 216
    assert [phase["epochs"] for phase in scale_config(config, 18)["ramp"]["phases"]] == [3, 3, 3, 9]
    assert split_epochs([1, 1, 100], 3) == [1, 1, 1]
    assert split_epochs([9, 9, 9, 27], 54) == [9, 9, 9, 27]
    speed = Speed(evaluation=0.01, validation=5.0, start=20.0)
    assert choose_epochs(config, speed, 1e6) == 54
    epochs = choose_epochs(config, speed, 400)
    assert epochs % 3 == 0
    assert predict_seconds(config, speed, epochs) <= 400 < predict_seconds(config, speed, epochs + 3)
    madry = yaml.safe_load((ROOT / "configs/cifar10/madry_8.yaml").read_text())
    milestones = len(madry["model"]["init_args"]["lr_milestones"])
    assert choose_epochs(madry, speed, predict_seconds(madry, speed, 3)) == 1 + milestones
    with pytest.raises(ValueError, match=r"6 epochs, the least, take \d+ s, and there are 30 s: raise --budget"):
        choose_epochs(config, speed, 30)


def test_a_rising_number_of_steps_and_milestones_in_epochs_follow_the_length() -> None:
    config = yaml.safe_load((ROOT / "configs/cifar10/iat_32.yaml").read_text())
    assert count_evaluations(config, 32) == 680
    chained = yaml.safe_load((ROOT / "configs/cifar10/chained_8_16_32.yaml").read_text())
    assert scale_config(chained, 15)["model"]["init_args"]["lr_scheduler"]["init_args"]["milestones"] == [5, 8]
    assert count_evaluations(chained, 30) == 20 * 8 + 5 * 21 + 5 * 41


def test_the_shipped_configs_are_those_of_the_runs() -> None:
    assert {f"{name}.yaml" for name in BY_CONFIG} <= {path.name for path in (ROOT / "configs/cifar10").iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "twin"], "--data-dir must be given"),
        (["--runs", "twin", "--data-dir", "nowhere"], "--data-dir must be a folder that holds CIFAR-10, got nowhere"),
        (["--runs", "fast", "--toy", "--start", "nonsense"], "--start must be CONFIG=FILE"),
        (["--runs", "fast", "--toy", "--start", "fast_16=x"], "--runs makes these weights"),
        (["--runs", "extended", "--toy", "--start", "madry_8=nowhere"], "there is no such file"),
    ],
)
def test_bad_options_give_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cifar10.main([*words, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err.splitlines()[-1]
