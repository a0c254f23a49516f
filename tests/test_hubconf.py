"""Shipped weights, loaded by ``torch.hub``."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hubconf
from datamodules import DigitsDataModule
from rampart.attacks import PGD
from rampart.files import fingerprint
from rampart.networks import MNISTCNN
from tests.conftest import ROOT

CIFAR10 = sorted(file.parent.name for file in (ROOT / "pretrained").glob("cifar10/*/weights.safetensors"))
SHIPPED = sorted(file.parent.name for file in (ROOT / "pretrained").glob("mnist/*/weights.safetensors"))


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
