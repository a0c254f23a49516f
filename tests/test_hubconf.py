"""The shipped weights, through ``torch.hub`` as a user loads them."""

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

SHIPPED = sorted(file.parent.name for file in (ROOT / "pretrained").glob("mnist/*/weights.safetensors"))


def hub(weights: str | None) -> MNISTCNN:
    network = torch.hub.load(str(ROOT), "mnist_cnn", source="local", weights=weights)
    assert type(network).__name__ == "MNISTCNN"
    return network  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_the_ones_that_their_numbers_speak_of(name: str) -> None:
    network = hub(name)
    assert not any(module.training for module in network.modules())
    data = DigitsDataModule()
    data.setup("test")
    images, labels, _index = next(iter(data.test_dataloader()))
    images, labels = images[:200], labels[:200]
    reports = [json.loads(file.read_text()) for file in (ROOT / f"pretrained/mnist/{name}").glob("test_*.json")]
    hashes = {report["weights"] for report in reports if "weights" in report}  # earlier files do not name them
    assert hashes == {fingerprint(*network.state_dict().values())}
    recorded = {row["name"]: row["accuracy"] for report in reports for row in report["results"]}
    with torch.no_grad():
        clean = (network(images).argmax(1) == labels).float().mean()
    adv = PGD(steps=20)(network, images, labels, 0.4)
    with torch.no_grad():
        robust = (network(adv).argmax(1) == labels).float().mean()
    # Training images, a weaker attack and few of them: near the recorded test accuracies, never far below.
    assert clean >= recorded["clean"] - 0.03
    assert robust >= recorded["PGD-200 @ 0.4"] - 0.05


@pytest.mark.parametrize("name", SHIPPED)
def test_autoattacks_reports_are_of_the_weights_beside_them_and_of_each_image(name: str) -> None:
    reports = sorted((ROOT / f"pretrained/mnist/{name}").glob("autoattack*.json"))
    assert reports
    for report in reports:
        told = json.loads(report.read_text())
        assert told["search"]["weights"] == fingerprint(*hub(name).state_dict().values())
        with report.with_suffix(".csv").open(newline="") as file:
            images = list(csv.DictReader(file))
        assert len(images) == told["images"]
        withstood = [float(image["fooled_at_eps"] or "inf") for image in images]
        for row in told["robust"]:
            assert row["count"] == sum(eps > row["eps"] for eps in withstood)


def test_what_is_said_of_the_fooled_images_is_said_of_autoattacks() -> None:
    folder = ROOT / "pretrained/mnist/fast"
    counted = json.loads((folder / "which_images.json").read_text())
    assert counted["per_image"] == hashlib.sha256((folder / "autoattack.csv").read_bytes()).hexdigest()


def test_without_weights_the_network_is_freshly_initialised() -> None:
    assert not torch.equal(hub(None).fc2.weight, hub(None).fc2.weight)


def test_unknown_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .* or None, got 'nonsense'"):
        hubconf.mnist_cnn("nonsense")


def test_an_installed_copy_says_where_the_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubconf, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(ValueError, match=r"not part of an installed copy: give torch\.hub\.load the folder"):
        hubconf.mnist_cnn("fast")
    assert hubconf.mnist_cnn(None)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", ["../mnist/fast", "", "fast/", 3])
def test_a_path_is_no_name_of_weights(name: Any) -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .*fast.*, got"):
        hubconf.mnist_cnn(name)
