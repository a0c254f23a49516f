"""The shipped weights, through ``torch.hub`` as a user loads them."""

import csv
import json
from pathlib import Path

import pytest
import torch

import hubconf
from attacks import PGD
from datamodules import DigitsDataModule
from evaluation import fingerprint
from networks import MNISTCNN
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


@pytest.mark.parametrize(
    "report",
    sorted((ROOT / "pretrained").glob("mnist/*/autoattack*.json")),
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_an_autoattack_report_is_of_the_weights_beside_it_and_of_each_image(report: Path) -> None:
    told = json.loads(report.read_text())
    assert told["search"]["weights"] == fingerprint(*hub(report.parent.name).state_dict().values())
    with report.with_suffix(".csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert len(images) == told["images"]
    standing = [image for image in images if image["label"] == image["clean_prediction"] and not image["fooled_by"]]
    assert [len(standing)] == [row["count"] for row in told["robust"]]


def test_without_weights_the_network_is_freshly_initialised() -> None:
    assert not torch.equal(hub(None).fc2.weight, hub(None).fc2.weight)


def test_unknown_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weights must be one of .* or None, got 'nonsense'"):
        hubconf.mnist_cnn("nonsense")
