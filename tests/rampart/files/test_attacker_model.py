"""Exports to the layouts of the robustness library and of the paper's authors."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rampart.files import export_network, load_weights
from rampart.files.attacker_model import shaeiri_weights
from rampart.files.export import check_export
from rampart.networks import MNISTCNN, Normalize, PreActResNet18, ResNet18, ResNet50
from rampart.networks.resnet import ResNet
from tests.rampart.files.attacker_model import AttackerModel, train_and_save

CIFAR = (3, 32, 32)


def test_the_robustness_library_restores_a_resnet(tmp_path: Path) -> None:
    network = ResNet18(width=4)
    network(torch.rand(8, *CIFAR))  # changes the running statistics
    export_network(network, tmp_path / "network.robustness.pt")
    checkpoint = torch.load(tmp_path / "network.robustness.pt", weights_only=True)
    assert checkpoint["epoch"] == 0
    # The library's steps: the names without `module.`, all of them into its AttackerModel.
    state = {name[len("module.") :]: value for name, value in checkpoint["model"].items()}
    theirs = AttackerModel(without_normalisation(ResNet18(width=4)), [0.0] * 3, [1.0] * 3)
    theirs.load_state_dict(state)
    assert list(theirs.state_dict()) == list(state)
    images = torch.rand(4, *CIFAR)
    torch.testing.assert_close(theirs.eval()(images), network.eval()(images), rtol=1e-5, atol=1e-5)
    train_and_save(theirs, images, tmp_path / "theirs.pt")
    back = ResNet18(width=4)
    load_weights(back, tmp_path / "theirs.pt")
    assert torch.equal(back.conv1.weight, theirs.model.get_parameter("conv1.weight"))
    assert (tmp_path / "network.robustness.pt").stat().st_size < 2 * sum(
        4 * value.numel() for value in network.state_dict().values()
    )


def without_normalisation(network: ResNet) -> nn.Module:
    """Return a network whose images are normalised outside of it, with the names of the library's."""
    network.normalize = Normalize([0.0] * 3, [1.0] * 3)
    network.normalize._non_persistent_buffers_set.update(("mean", "std"))
    return network


def test_the_authors_layout_of_cifar_10_has_the_names_of_the_library() -> None:
    with torch.device("meta"):  # shapes alone: its files have 94 MB
        network = ResNet50()
        theirs = AttackerModel(without_normalisation(ResNet50()), [0.0] * 3, [1.0] * 3)
    weights = network.state_dict()
    state = shaeiri_weights(network, weights)
    assert list(state) == list(theirs.state_dict())
    for name in ("model", "attacker.model"):
        assert state[f"{name}.layer4.2.conv3.weight"] is weights["layer4.2.conv3.weight"]
    assert state["normalizer.new_std"] is state["attacker.normalize.new_std"] is weights["normalize.std"]


@pytest.mark.parametrize(
    ("ending", "network", "message"),
    [
        ("robustness.pt", MNISTCNN(), "are ResNets with three channels, got MNISTCNN: export it as pth, saf"),
        (
            "robustness.pt",
            PreActResNet18(width=2),
            "got PreActResNet18: export it as pth",
        ),
        (
            "robustness.pt",
            ResNet18(width=2, mean=[0.5], std=[0.5]),
            "got ResNet18 with 1 channels, width 2 and 10 classes: export",
        ),
        (
            "shaeiri.pth",
            ResNet18(width=2),
            "are MNISTCNN and ResNet50 with three channels, width 64 and 10 classes, got",
        ),
        ("shaeiri.pth", ResNet50(width=2), "got ResNet50 with 3 channels, width 2 and 10 "),
        ("shaeiri.pth", ResNet50(num_classes=100, width=2), "got ResNet50 with 3 channels, width 2 and 100"),
    ],
)
def test_layouts_refuse_other_networks_before_any_file_is_written(
    ending: str, network: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_export(network, [tmp_path / "network.pth", tmp_path / f"network.{ending}"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        export_network(network, tmp_path / f"network.{ending}")
    assert not list(tmp_path.iterdir())
