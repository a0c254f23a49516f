"""Two processes compute the gradients, statistics and losses of one process with both batches."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.cluster.equal_process import OBJECTIVES, normalise, train
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of two processes."""
    folder = tmp_path_factory.mktemp("parts")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.cluster.equal_process"]
    processes = [
        subprocess.Popen(
            [*command, f"{rank}", folder], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=240)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_close(result: Any, expected: Any) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_and_statistics_are_those_of_the_whole_batch(parts: list[dict[str, Any]], name: str) -> None:
    expected = train(name, 0, 1)
    for part in parts:
        assert_close(part[name]["gradients"], expected["gradients"])
        assert_close(part[name]["buffers"], expected["buffers"])
        assert part[name]["kinds"] == expected["kinds"]


def test_batchnorm_weighs_processes_by_their_numbers_of_images(parts: list[dict[str, Any]]) -> None:
    expected = normalise(0, 1)
    layers = [part["layer"] for part in parts]
    for name in ("output", "gradient", "eval"):
        assert_close(torch.cat([layer[name] for layer in layers]), expected[name])
    assert_close(layers[0]["weight"] + layers[1]["weight"], expected["weight"])
    for layer in layers:
        assert_close(layer["buffers"], expected["buffers"])
        assert layer["bfloat16"] == torch.bfloat16


def test_an_attack_changes_no_gradient_whatever_the_reducer(parts: list[dict[str, Any]]) -> None:
    """Static graph, unused parameters and accumulated batches: an attack that is discarded leaves no trace."""
    for part in parts:
        for without, attacked in part["discarded"]:
            assert all(torch.equal(*pair) for pair in zip(without, attacked, strict=True))
    for ours, theirs in zip(parts[0]["discarded"], parts[1]["discarded"], strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours[0], theirs[0], strict=True))
