"""Comparison with known outcomes: networks of ONNX files, attacks on boxes, and contradictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from benchmarks import certificates
from benchmarks.certificate_checks import instances, oracle, published
from benchmarks.certificate_checks.boxes import BoxNetwork, attack_box
from benchmarks.certificate_checks.onnx_network import OnnxNetwork
from benchmarks.certificate_checks.tables import format_rows, summarise
from benchmarks.published_networks import wong_kolter_cnn
from rampart.attacks import APGD, PGD
from tests.conftest import ROOT

WEIGHTS = {
    "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 4, 1, 1),
    "w4": (5, 64), "b4": (5,), "w5": (5, 5), "b5": (5,),
}  # fmt: skip


def write_onnx(file: Path, nodes: list[onnx.NodeProto] | None = None) -> None:
    """Write a residual block of convolutions and two linear layers for inputs of shape (3, 8, 8)."""
    generator = np.random.default_rng(0)
    tensors = {name: generator.normal(size=shape).astype(np.float32) / 4 for name, shape in WEIGHTS.items()}
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": 1}
    nodes = nodes or [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], strides=[2, 2], dilations=[1, 1], **conv),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], **conv),
        helper.make_node("Conv", ["b", "w3"], ["d"], kernel_shape=[1, 1]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w5", "b5"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def test_onnx_network_computes_what_onnxruntime_does(tmp_path: Path) -> None:
    write_onnx(tmp_path / "network.onnx")
    network = OnnxNetwork(tmp_path / "network.onnx")
    assert network.image_shape == (3, 8, 8)
    images = torch.rand(4, 3, 8, 8)
    expected = onnxruntime.InferenceSession(str(tmp_path / "network.onnx")).run(None, {"x": images.numpy()})[0]
    torch.testing.assert_close(network(images), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Tanh", ["x"], ["y"]), "cannot read the ONNX operation Tanh"),
        (helper.make_node("Flatten", ["x"], ["y"], axis=2), "cannot read the ONNX operation Flatten"),
        (helper.make_node("Conv", ["x", "w1"], ["y"], pads=[0, 0, 1, 1]), "different padding at both ends"),
        (helper.make_node("Gemm", ["x", "w5", "b5"], ["y"], alpha=0.5), "cannot read a Gemm with alpha"),
    ],
)
def test_onnx_network_rejects_other_operations_by_name(tmp_path: Path, node: onnx.NodeProto, message: str) -> None:
    write_onnx(tmp_path / "network.onnx", [node])
    with pytest.raises(ValueError, match=message):
        OnnxNetwork(tmp_path / "network.onnx")


def linear_network(shift: float = 0.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network whose largest margin of class 1 over class 0 in a box is 3 - shift, and that box."""
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, -2.0, 3.0, 5.0]]))
        linear.bias.copy_(torch.tensor([shift, 0.0]))
    lower, upper = torch.tensor([[[-1.0, 0.5], [0.0, 0.2]]]), torch.tensor([[[1.0, 2.0], [0.6, 0.24]]])
    return nn.Sequential(nn.Flatten(), linear), lower, upper  # 1 - 1 + 1.8 + 1.2 = 3


def test_unit_cube_is_mapped_to_the_box() -> None:
    network, lower, upper = linear_network()
    boxed = BoxNetwork(network, lower, upper)
    corners = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    assert torch.equal(boxed.to_box(corners), torch.stack([lower, upper]))
    torch.testing.assert_close(boxed(corners), network(torch.stack([lower, upper])))
    points = boxed.to_box(torch.rand(1000, 1, 2, 2))
    assert bool((points >= lower).all())
    assert bool((points <= upper).all())


@pytest.mark.parametrize("attack", [PGD(steps=10, loss="margin"), APGD(steps=10)])
@pytest.mark.parametrize(("shift", "robust"), [(2.9, False), (3.1, True)])
def test_attack_finds_a_counterexample_exactly_where_there_is_one(attack: Any, shift: float, robust: bool) -> None:
    network, lower, upper = linear_network(shift)
    found = attack_box(network, lower, upper, 0, [attack], starts=2, seed=0)
    assert (found is None) == robust
    if found:
        assert found.attack == attack.name
        assert found.margin == pytest.approx(3 - shift, abs=1e-5)
        torch.testing.assert_close(found.point, torch.tensor([[[1.0, 0.5], [0.6, 0.24]]]))


def write_instances(folder: Path, verdicts: list[str]) -> None:
    """Write one tiny box per verdict, with the class that the network predicts in its middle."""
    write_onnx(folder / "network.onnx")
    middle = torch.rand(len(verdicts), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.savez(
        folder / "vnncomp2021_tiny.npz",
        lower=(middle - 1e-5).flatten(1).numpy(),
        upper=(middle + 1e-5).flatten(1).numpy(),
        label=OnnxNetwork(folder / "network.onnx")(middle).argmax(1).numpy(),
        net=np.array(["network.onnx"] * len(verdicts)),
        verdict=np.array(verdicts),
    )


def test_command_writes_tables_and_fails_on_a_certified_counterexample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "ATTACKS", (APGD(steps=5),))
    (tmp_path / "certified").mkdir()
    write_instances(tmp_path / "certified", ["unsat", "open"])
    arguments = ["--sections", "instances", "--data-dir", str(tmp_path), "--out"]
    certificates.main([*arguments, str(tmp_path / "right.json")])
    result = json.loads((tmp_path / "right.json").read_text())
    assert result["contradictions"] == []
    assert [row["verdict"] for row in result["instances"]] == ["unsat", "open"]
    assert all("IBP" in row["certified"] for row in result["instances"])
    assert "| tiny | network.onnx | unsat | 1 | 1 | 1 | 0 |" in (tmp_path / "right.md").read_text()
    assert "Refuted, but not fooled here: none." in (tmp_path / "right.md").read_text()
    write_instances(tmp_path / "certified", ["sat"])
    with pytest.raises(
        SystemExit, match=r"contradicts what is known: tiny 0 \(network.onnx, sat\) is certified by IBP"
    ):
        certificates.main([*arguments, str(tmp_path / "wrong.json")])
    assert "Refuted, but not fooled here: tiny 0." in (tmp_path / "wrong.md").read_text()


def test_fooled_instances_contradict_a_proof_and_a_certificate() -> None:
    row = {
        "set": "s", "instance": 3, "network": "n.onnx", "label": 0, "verdict": "unsat",
        "certified": ["IBP"], "counterexample": {"attack": "PGD-100", "margin": 0.25},
    }  # fmt: skip
    assert instances.find_contradictions([row]) == [
        "s 3 (n.onnx, unsat) is certified by IBP",
        "s 3 (n.onnx, unsat) is fooled by PGD-100, margin 0.25",
    ]
    assert instances.find_contradictions([row | {"verdict": "sat", "certified": []}]) == []


def published_row(**changes: Any) -> dict[str, Any]:
    row = {
        "network": "n.pth", "images": "mnist", "eps": "0.1", "total": 10_000, "correct": 9811, "bounded": 10_000,
        "attacked": 10_000, "robust": 9570, "certified": {"IBP": 9000},
        "certified and misclassified": 0, "certified and fooled": 0,
        "published": {"clean": 98.11, "pgd": 95.89, "exact": 95.62, "certified": 94.18, "decimals": 2},
    }  # fmt: skip
    return row | changes


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"correct": 9809}, ["clean accuracy 98.09, published 98.11"]),
        ({"certified": {"IBP": 9563}}, ["certified 95.63, more than the 95.62 that are at most robust"]),
        ({"robust": 9561}, ["robust 95.61, less than the 95.62 that are proved robust"]),
        ({"certified and fooled": 2}, ["2 certified images are fooled"]),
        ({"total": 100, "correct": 50, "bounded": 100, "attacked": 100, "robust": 10}, []),
        ({"published": None, "correct": 50}, []),
    ],
)
def test_contradictions_with_published_numbers_are_listed(changes: dict[str, Any], found: list[str]) -> None:
    expected = [f"n.pth at eps 0.1: {text}" for text in found]
    assert published.find_contradictions(published_row(**changes)) == expected


def test_bounds_that_differ_from_the_oracles_are_listed() -> None:
    row = {"network": "n", "method": "IBP", "relative_difference": 1e-6, "certified": 1, "certified by auto_LiRPA": 1}
    assert oracle.find_disagreements([row]) == []
    assert len(oracle.find_disagreements([row | {"relative_difference": 1e-3}, row | {"certified": 2}])) == 2


def test_published_network_is_bounded_and_attacked_on_its_first_images(tmp_path: Path) -> None:
    (tmp_path / "certified").mkdir()
    torch.manual_seed(0)
    network = wong_kolter_cnn()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = torch.rand(6, 28, 28, 1)
    labels = network(images.permute(0, 3, 1, 2)).argmax(1)
    labels[5] = (labels[5] + 1) % 10
    np.save(tmp_path / "certified" / "mnist_sdp_200_images.npy", images.numpy())
    np.save(tmp_path / "certified" / "mnist_sdp_200_labels.npy", labels.numpy())
    case = published.Published("weights.pth", "mnist_sdp", "0.3", None, 76.5, 76.0, "verifier", smaller=("1/100000",))
    sources = published.Sources(tmp_path, tmp_path)
    row = published.check_case(case, "1/100000", sources, count=4, attacked=3, seed=0)
    assert (row["total"], row["correct"], row["bounded"], row["attacked"]) == (6, 5, 4, 3)
    assert row["certified"] == {"IBP": 4, "CROWN-IBP": 4}
    assert row["robust"] == row["certified of the attacked"] == 3
    assert published.find_contradictions(row) == []
    row = published.check_case(case, "0.3", sources, count=6, attacked=6, seed=0)
    assert row["published"]["pgd"] == 76.5
    assert row["certified"] == {"IBP": 0, "CROWN-IBP": 0}
    assert published.find_contradictions(row) == []
    assert "| weights.pth | 0.3 |  | 83.33 | 76.50 |" in format_rows([summarise(row)])


def test_oracle_that_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "find_oracle", lambda: None)
    certificates.main(["--sections", "oracle", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out.json")])
    assert "auto_LiRPA is not installed." in (tmp_path / "out.md").read_text()


def test_recorded_run_has_no_contradiction() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "certificates" / "certificates.json").read_text())
    assert result["contradictions"] == []
    assert instances.find_contradictions(result["instances"]) == []
    assert not [text for row in result["published"] for text in published.find_contradictions(row)]
    assert oracle.find_disagreements(result["oracle"]) == []
    assert {row["bounded"] for row in result["published"]} == {200, 10_000}
