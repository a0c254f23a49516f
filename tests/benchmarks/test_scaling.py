"""The benchmark of one process against two, and the projection to many GPUs."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks import scaling
from benchmarks.accelerator_sections import worker
from benchmarks.scaling_parts import probe
from benchmarks.scaling_parts.cases import CASES, Case, build_fit
from benchmarks.scaling_parts.measuring import summarise
from benchmarks.scaling_parts.projection import CONFIGS, GPUS, Links, Workload, project, project_all, read_workload
from benchmarks.scaling_parts.tables import format_measured, format_projection
from commands.command_line import run_command
from tests.conftest import ROOT

LINKS = Links(node=4, nvlink=100.0, network=10.0, latency=(20.0, 50.0))
WORK = Workload("toy", "Toy", 128, 600, 2.0, 1.5, 8_000_000, 10)
CASE = Case("toy", (), 8, 5)


def test_an_all_reduce_takes_the_time_of_rings_within_and_between_nodes() -> None:
    assert LINKS.all_reduce(8e6, 1) == 0
    assert LINKS.all_reduce(8e6, 2) == pytest.approx(2 * 0.5 * 8e6 / 100e9 * 1e3)
    assert LINKS.all_reduce(8e6, 4) == pytest.approx(0.12)  # 2 (3/4) 8 MB / (100 GB/s)
    assert LINKS.all_reduce(8e6, 8) == pytest.approx(0.12 + 0.8)  # and 2 (1/2) 8 MB / (10 GB/s)
    assert [LINKS.short_exchange(gpus) for gpus in (1, 4, 8)] == pytest.approx([0, 0.02, 0.05])


def test_one_gpu_takes_the_measured_attack_steps_and_the_assumed_update() -> None:
    assert WORK.compute(128) == pytest.approx(2 * 1.96 + 1.5 * 12)
    assert WORK.compute(512) == pytest.approx(2 * 5.73 + 1.5 * 12)
    assert replace(WORK, operations=2.0, layers=3.0).compute(128) == pytest.approx(4 * 1.96 + 4.5 * 12)
    row = project(WORK, 1, "divided", LINKS)
    assert row["communication_share"] == row["all_reduce_ms"] == 0
    assert row["speed_over_one_gpu"] == [1, 1]
    assert row["minutes"] == pytest.approx([600 * 0.02192 / 60] * 2)


def test_a_projection_adds_communication_and_hides_what_the_backward_pass_covers() -> None:
    kept = project(replace(WORK, gradient_bytes=80_000_000), 8, "kept", LINKS)
    assert kept["images_per_gpu"] == 128
    assert kept["statistics_ms"] == pytest.approx(2 * 0.05 * 10 * 1.5)
    assert kept["all_reduce_ms"] == pytest.approx(1.5 * 9.2)
    steps = 21.92 + 1.5 + 4.6 + 9.2, 21.92 + 1.5 + 4.6 + 3.2  # 6 ms are hidden
    assert kept["images_per_second"] == pytest.approx([8 * 128e3 / step for step in steps])
    assert kept["speed_over_one_gpu"] == pytest.approx([8 * 21.92 / step for step in steps])
    assert kept["communication_share"] == pytest.approx(15.3 / steps[0])
    divided = project(WORK, 4, "divided", LINKS)
    assert divided["images_per_gpu"] == 32
    assert divided["images_per_second"][1] == pytest.approx(128e3 / (WORK.compute(32) + 0.6 + 0.06))


def test_workloads_are_those_of_the_configs() -> None:
    costs = {"madry_8": 384, "extended_16": 105, "extended_32": 205, "fast_16": 428, "fast_32": 442}  # their headers
    epochs = {"madry_8": 48, "extended_16": 5, "extended_32": 5, "fast_16": 54, "fast_32": 52}
    works = {name: read_workload(name) for name in CONFIGS}
    found = {name: epochs[name] * (work.attack_steps + work.passes) for name, work in works.items()}
    assert found == pytest.approx(costs, abs=0.6)
    assert works["madry_8"].gradient_bytes == 4 * 11_173_962
    assert (works["madry_8"].batchnorm_layers, works["extended_16"].batchnorm_layers) == (20, 53)
    assert works["madry_8"].updates == 48 * 391


def test_turns_are_summarised_by_medians_and_ratios_within_a_round() -> None:
    def turn(seconds: float, cpu: float, threads: list[int], waits: float = 0.0) -> dict[str, Any]:
        return {"seconds": seconds, "cpu_seconds": cpu, "waits": waits, "threads": threads}

    turns = {
        "one": [turn(1.0, 2.0, [2]), turn(4.0, 2.0, [2]), turn(2.0, 2.0, [2])],
        "two": [turn(2.0, 2.5, [1, 1], 0.1), turn(4.0, 2.5, [1, 1], 0.2), turn(1.0, 2.5, [1, 1], 0.3)],
        "exchanges": [{"seconds": 0.02, "buckets": [400, 80]}] * 3,
    }
    row = summarise(CASE, turns)
    assert (row["one_images_per_second"], row["two_images_per_second"]) == (20, 20)
    assert (row["ratio"], row["ratio_quartiles"], row["cpu_ratio"]) == (1.0, [0.75, 1.5], 0.8)
    assert (row["step_seconds"], row["gradient_bytes"]) == (0.4, 480)
    assert row["all_reduce_share"] == pytest.approx(0.05)
    assert row["wait_share"] == pytest.approx(0.5)
    page = format_measured([{"case": "toy", "images_per_update": 8} | row, {"case": "b", "left_out": "no reply"}])
    assert "| toy | 8 | 2, 1 + 1 | 20 | 20 | **1.00** (0.75 to 1.50) | 0.80 |" in page
    assert "- Left out: b: no reply" in page


def test_commands_of_all_cases_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(worker.STANDALONE))
    layouts = [(1, False), (2, False), (2, False), (2, False), (2, True)]  # processes; True if they share a GPU
    for case, (processes, shared) in zip(CASES["cpu"], layouts, strict=True):
        command = build_fit(case, processes, "cuda" if shared else "cpu", shared, tmp_path)
        with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as end:
            run_command([*command[1:], "--print_config"])
        assert end.value.code == 0
        assert f"batch_size: {case.images // processes}" in shown.getvalue()


def test_updates_of_fit_are_timed_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replies: list[dict[str, Any]] = []
    requests = iter([{"updates": 2}, {"updates": 1}, {"stop": 1}])

    class Channel:
        def send(self, **reply: Any) -> None:
            replies.append(reply)

        def receive(self) -> dict[str, int]:
            return next(requests)

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(probe, "Channel", Channel)
    monkeypatch.setattr("os._exit", end)
    monkeypatch.chdir(ROOT)
    command = build_fit(CASES["quick"][0], 1, "cpu", False, tmp_path)
    with pytest.raises(SystemExit):
        run_command([*command[1:], "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"])
    first, two, one = replies
    assert first == {}
    assert two["seconds"] > 0 < one["cpu_seconds"]
    assert two["threads"] == [torch.get_num_threads()]
    assert two["waits"] == 0


def test_gradients_are_exchanged_in_the_buckets_of_ddp(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(torch.nn.Linear(3, 2))

        class Strategy:
            def __init__(self) -> None:
                self.model = model

            def barrier(self) -> None:
                dist.barrier()

        class Trainer:
            strategy = Strategy()

        class Module:
            device = torch.device("cpu")

        model._set_ddp_runtime_logging_sample_rate(1)
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
        reply = probe.time_all_reduces(Trainer(), Module(), 2)  # type: ignore[arg-type]
        assert sum(reply["buckets"]) == 4 * 8
        assert reply["seconds"] > 0
        assert 0 < probe.sum_waits(Trainer()) < 10  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()


def test_the_projection_alone_is_written_and_marked_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    scaling.main(["--parts=projection", f"--out={out}", "--nvlink=150"])
    result = json.loads(out.read_text())
    assert len(result["projection_not_a_measurement"]) == len(CONFIGS) * (1 + 2 * (len(GPUS) - 1))
    assert "A projection, not a measurement." in out.with_suffix(".md").read_text()
    assert "150 GB/s" in capsys.readouterr().out
    assert "| `madry_8` | ResNet18 | 64 | kept | 128 |" in format_projection(project_all(Links()), {**vars(Links())})


def test_wrong_options_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("")
    for options, message in (
        (["--parts=speed"], "--parts must be among steps, projection, got 'speed'"),
        (["--network=0"], "--nvlink and --network must be above 0, got 300 and 0"),
        ([f"--out={tmp_path / 'a.json'}"], "which exists"),
    ):
        with pytest.raises(SystemExit):
            scaling.main(options)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_are_measured_in_turn_with_one(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    scaling.main(["--quick", "--device=cpu", "--parts=steps", f"--out={out}"])
    for row in json.loads(out.read_text())["steps"]:
        assert len(row["threads"]["two"]) == 2
        assert row["ratio"] > 0 < row["all_reduce_seconds"]
        assert 0 < row["wait_share"] < 1
