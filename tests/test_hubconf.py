"""Shipped weights, loaded by ``torch.hub``."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hubconf
from datamodules import DigitsDataModule
from rampart.attacks import PGD
from rampart.files import fingerprint
from rampart.networks import CNN5, MNISTCNN
from tests.conftest import ROOT

CIFAR10 = sorted(file.parent.name for file in (ROOT / "pretrained").glob("cifar10/*/weights.safetensors"))
MNIST = sorted(file.parent.name for file in (ROOT / "pretrained").glob("mnist/*/weights.safetensors"))
CERTIFIED = [name.removeprefix("certified_") for name in MNIST if name.startswith("certified_")]
SHIPPED = [name for name in MNIST if not name.startswith("certified_")]


def hub(weights: str | None) -> MNISTCNN:
    network = torch.hub.load(str(ROOT), "mnist_cnn", source="local", weights=weights)
    assert type(network).__name__ == "MNISTCNN"
    return network  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_those_of_their_reports(name: str) -> None:
    network = hub(name)
    assert not any(module.training for module in network.modules())
    data = DigitsDataModule()
    data.setup("test")
    images, labels, _index = next(iter(data.test_dataloader()))
    images, labels = images[:200], labels[:200]
    reports = [json.loads(file.read_text()) for file in (ROOT / f"pretrained/mnist/{name}").glob("test_*.json")]
    hashes = {report["weights"] for report in reports if "weights" in report}  # earlier reports have no hash
    assert hashes == {fingerprint(*network.state_dict().values())}
    recorded = {row["name"]: row["accuracy"] for report in reports for row in report["results"]}
    with torch.no_grad():
        clean = (network(images).argmax(1) == labels).float().mean()
    adv = PGD(steps=20)(network, images, labels, 0.4)
    with torch.no_grad():
        robust = (network(adv).argmax(1) == labels).float().mean()
    # Few training images and a weaker attack: near the recorded test accuracies, never far below.
    assert clean >= recorded["clean"] - 0.03
    assert robust >= recorded["PGD-200 @ 0.4"] - 0.05


@pytest.mark.parametrize("name", SHIPPED)
def test_autoattack_reports_are_of_the_shipped_weights_and_agree_with_their_csv(name: str) -> None:
    reports = sorted((ROOT / f"pretrained/mnist/{name}").glob("autoattack*.json"))
    assert reports
    for report in reports:
        saved = json.loads(report.read_text())
        assert saved["search"]["weights"] == fingerprint(*hub(name).state_dict().values())
        with report.with_suffix(".csv").open(newline="") as file:
            images = list(csv.DictReader(file))
        assert len(images) == saved["images"]
        fooled_at = [float(image["fooled_at_eps"] or "inf") for image in images]
        for row in saved["robust"]:
            assert row["count"] == sum(eps > row["eps"] for eps in fooled_at)


@pytest.mark.parametrize("name", CIFAR10)
def test_shipped_cifar10_weights_are_the_bits_of_their_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = torch.hub.load(str(ROOT), "cifar_resnet", source="local", weights=name)
    assert capsys.readouterr().out.startswith(f"{name}: ")
    folder = ROOT / "pretrained" / "cifar10" / name
    record = json.loads((folder / "record.json").read_text())
    assert record["sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert fingerprint(*network.state_dict().values()) == record["pgd"]["weights_fingerprint"]
    assert record["apgd"]["weights_fingerprint"] == record["pgd"]["weights_fingerprint"]
    assert not network.training


@pytest.mark.parametrize("name", CERTIFIED)
def test_shipped_certified_weights_are_the_bits_of_their_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = torch.hub.load(str(ROOT), "certified_cnn", source="local", weights=name)
    assert capsys.readouterr().out.startswith(f"{name}: ")
    folder = ROOT / "pretrained" / "mnist" / f"certified_{name}"
    record = json.loads((folder / "record.json").read_text())
    assert record["sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert not network.training


def test_certified_weights_are_loaded_into_the_network_of_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"width": 2, "hidden": 8, "levels": [[0.43, 0.57]]}
    saved = {name: tensor.half() for name, tensor in CNN5(**settings).state_dict().items()}
    folder = tmp_path / "mnist" / "certified_tiny"
    folder.mkdir(parents=True)
    save_file(saved, folder / "weights.safetensors")
    rows = [{"eps": 0.1, "accuracy": 0.95}, {"eps": 0.4, "accuracy": 0.9}]
    report = {"images": 1000, "clean": {"accuracy": 0.97}, "robust": rows}
    record: dict[str, Any] = {
        "network": {"class_path": "rampart.networks.CNN5", "init_args": settings},
        "certificates": report | {"certificates": {"certified": [rows[0], {"eps": 0.4, "accuracy": 0.85}]}},
        "autoattack": {"images": 20, "robust": [{"eps": 0.4, "accuracy": 0.88}]},
    }
    monkeypatch.setattr(hubconf, "PRETRAINED", tmp_path)
    sides = "tiny: 97.0% clean; at 0.4, 85.0% certified and 90.0% under PGD-10 on 1,000 images"
    for line in (f"{sides}; 88.0% under AutoAttack on 20 images\n", f"{sides}\n"):
        (folder / "record.json").write_text(json.dumps(record))
        network = hubconf.certified_cnn("tiny")
        assert capsys.readouterr().out == line
        record.pop("autoattack", None)
    assert not network.training
    assert torch.equal(network.state_dict()["fc2.weight"], saved["fc2.weight"].float())
    with pytest.raises(ValueError, match="weights must be one of tiny or None, got 'certified_tiny'"):
        hubconf.certified_cnn("certified_tiny")
    with pytest.raises(ValueError, match="has no pretrained weights"):
        hubconf.mnist_cnn("certified_tiny")
    assert hubconf.certified_cnn(None)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_the_shipped_weights_for_cifar10_take_little_of_the_repository() -> None:
    files = (ROOT / "pretrained" / "cifar10").glob("*/weights.safetensors")
    assert sum(file.stat().st_size for file in files) <= 24e6


def test_counts_of_fooled_images_come_from_the_shipped_autoattack_report() -> None:
    folder = ROOT / "pretrained/mnist/fast"
    counts = json.loads((folder / "which_images.json").read_text())
    assert counts["per_image"] == hashlib.sha256((folder / "autoattack.csv").read_bytes()).hexdigest()


def test_without_weights_the_network_is_randomly_initialised() -> None:
    assert not torch.equal(hub(None).fc2.weight, hub(None).fc2.weight)
    assert hubconf.cifar_resnet(None)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_unknown_weights_raise_with_their_name() -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .* or None, got 'nonsense'"):
        hubconf.mnist_cnn("nonsense")


def test_an_installed_copy_raises_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubconf, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(ValueError, match=r"not part of an installed copy: give torch\.hub\.load the folder"):
        hubconf.mnist_cnn("fast")
    with pytest.raises(ValueError, match=r"not part of an installed copy"):
        hubconf.cifar_resnet("fast")
    assert hubconf.mnist_cnn(None)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", ["../mnist/fast", "", "fast/", 3])
def test_a_path_instead_of_a_name_raises(name: Any) -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .*fast.*, got"):
        hubconf.mnist_cnn(name)
