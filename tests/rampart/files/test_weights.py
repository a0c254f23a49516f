import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rampart.files import load_weights
from rampart.files.weight_files import read_checkpoint
from rampart.networks import MNISTCNN


class Payload:
    """An object that runs a command if pickle loads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def write(path: Path, network: nn.Module, kind: str) -> Path:
    state = network.state_dict()
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif kind == "lightning":
        whole = {f"network.{k}": v for k, v in state.items()} | {"val_acc.tp": torch.zeros(1)}
        torch.save({"pytorch-lightning_version": "2.6.6", "epoch": 3, "global_step": 9, "state_dict": whole}, path)
    elif kind == "nested":
        torch.save({"state_dict": state, "epoch": 4}, path)
    elif kind == "parallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["plain", "legacy", "nested", "parallel", "lightning", "safetensors"])
def test_each_format_is_loaded_and_reported(tmp_path: Path, kind: str) -> None:
    source, target = MNISTCNN(), MNISTCNN()
    path = write(tmp_path / "weights.pth", source, kind)
    report = str(load_weights(target, path))
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "8 tensors (1,111,946 numbers)" in report
    assert str(path) in report
    assert ("epoch 3" in report) == (kind == "lightning")


def test_a_mismatch_names_tensors_and_shapes_and_loads_nothing(tmp_path: Path) -> None:
    source, target = MNISTCNN(num_classes=7), MNISTCNN()
    before = target.conv1.weight.clone()
    path = write(tmp_path / "weights.pth", source, "plain")
    with pytest.raises(ValueError, match=r"fc2.weight is \(7, 1024\) in the file and \(10, 1024\) in the network"):
        load_weights(target, path)
    assert torch.equal(target.conv1.weight, before)


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pth", nn.Sequential(nn.Linear(2, 3)), "plain")
    with pytest.raises(ValueError, match=r"conv1.weight \(32, 1, 5, 5\) is missing.*0.weight \(3, 2\) is unknown"):
        load_weights(MNISTCNN(), path)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, nested: bool, zip_format: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    payload = Payload(trace)
    content = {"state_dict": MNISTCNN().state_dict(), "args": payload} if nested else payload
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError, match="refused, nothing") as caught:
        load_weights(MNISTCNN(), path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Payload(path.parent / "trace")}))


def truncated(path: Path) -> None:
    torch.save(MNISTCNN().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_text("weights, of a kind\n"),
        lambda p: p.write_text("import os"),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(bytes(range(256)) * 8),
        bare_pickle,
        truncated,
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, make: Any, name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors) .*refused") as caught:
        load_weights(MNISTCNN(), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2]])
def test_a_file_without_a_dictionary_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_dictionary_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds no network's weights.*epoch, best"):
        load_weights(MNISTCNN(), tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{"state_dict": [1]}, {0: torch.ones(2)}, {"state_dict": {"a": 3}}])
def test_other_contents_are_refused_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds no network's weights"):
        load_weights(MNISTCNN(), tmp_path / "w.pth")


def test_a_network_with_names_like_a_wrappers_loads_its_weights(tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"module": nn.Linear(2, 3)}) for _ in range(2))
    load_weights(target, write(tmp_path / "w.pth", source, "plain"))
    load_weights(target, write(tmp_path / "l.pth", source, "lightning"))
    assert torch.equal(source["module"].weight, target["module"].weight)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*nothing\.ckpt"):
        read_checkpoint(tmp_path / "nothing.ckpt")
