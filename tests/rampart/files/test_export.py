import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.files import export_network, load_weights
from rampart.files.export import check_export
from rampart.networks import MNISTCNN, GatedMNISTCNN
from tests.rampart.networks.references import EACH_BLOCK, NARROW

MNIST = (1, 28, 28)


class AuthorsNetwork(nn.Module):
    """The network of the authors' MNIST/test.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.fc1 = nn.Linear(4 * 4 * 64, 1024)
        self.fc2 = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.view(-1, 4 * 4 * 64))))
        return logits


def test_the_authors_network_loads_the_pth_and_gives_the_same_logits(tmp_path: Path, images: Tensor) -> None:
    network, theirs = MNISTCNN(), AuthorsNetwork()
    export_network(network, tmp_path / "network.pth", MNIST)
    theirs.load_state_dict(torch.load(tmp_path / "network.pth", weights_only=True))
    torch.testing.assert_close(theirs(images), network(images))


def test_the_authors_network_loads_the_plain_form_of_gates(tmp_path: Path, images: Tensor) -> None:
    network, theirs = GatedMNISTCNN(), AuthorsNetwork()
    export_network(network, tmp_path / "network.shaeiri.pth")
    theirs.load_state_dict(torch.load(tmp_path / "network.shaeiri.pth", weights_only=True))
    torch.testing.assert_close(theirs(images), network.plain()(images))


@pytest.mark.parametrize("kind", NARROW)
def test_weights_are_equal_after_export_and_loading(tmp_path: Path, kind: str) -> None:
    network = NARROW[kind]()
    for suffix in ("pth", "safetensors"):
        export_network(network, tmp_path / f"network.{suffix}")
        other = NARROW[kind]()
        load_weights(other, tmp_path / f"network.{suffix}")
        assert all(
            torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("build", [MNISTCNN, *(NARROW[kind] for kind in EACH_BLOCK)])
def test_onnx_gives_the_networks_logits_for_any_number_of_images(tmp_path: Path, build: Any) -> None:
    network = build()
    shape = network.image_shape
    network(torch.rand(64, *shape))  # changes the running statistics from their initial values
    network.conv1.eval()
    export_network(network, tmp_path / "network.onnx")
    assert network.training
    assert not network.conv1.training
    network.eval()
    exported = session(tmp_path / "network.onnx")
    (given,) = exported.get_inputs()
    assert given.name == "images"
    assert given.shape[1:] == list(shape)
    for n in (1, 2, 5, 40):
        images = torch.rand(n, *shape)
        (logits,) = exported.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(images), rtol=1e-3, atol=1e-4)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_onnx_holds_the_network_that_is_attacked(tmp_path: Path, labels: Tensor) -> None:
    network = GatedMNISTCNN().eval()
    images = torch.rand(12, *MNIST).round(decimals=1)  # many pixels between the gates' levels
    attacked = AdversarialClassifier(network, 0.4).evaluated_network
    adversarial = PGD(steps=5)(attacked, images, labels, 0.4)
    export_network(network, tmp_path / "network.onnx", MNIST)
    (tensor,) = [t for t in onnx.load(tmp_path / "network.onnx").graph.initializer if t.dims == [32, 1, 5, 5]]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), network.conv1.weight.detach())
    for given in (images, adversarial):
        (logits,) = session(tmp_path / "network.onnx").run(["logits"], {"images": given.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, attacked(given), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
def test_a_wrapped_network_is_written_without_its_wrapper(tmp_path: Path, suffix: str, images: Tensor) -> None:
    network = MNISTCNN().eval()
    wrapped: Any = nn.DataParallel(torch.compile(nn.DataParallel(network), backend="eager"))
    export_network(wrapped, tmp_path / f"network.{suffix}")
    if suffix == "onnx":
        (logits,) = session(tmp_path / "network.onnx").run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(images), rtol=1e-3, atol=1e-4)
    else:
        assert load_weights(MNISTCNN(), tmp_path / f"network.{suffix}").prefix == ""


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
def test_exported_files_have_ordinary_permissions(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").touch()
    export_network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), tmp_path / f"n.{suffix}", (1, 2, 2))
    assert (tmp_path / f"n.{suffix}").stat().st_mode == (tmp_path / "file").stat().st_mode


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, suffix: str, value: float) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.state_dict()["1.bias"][0] = value
    with pytest.raises(ValueError, match=r"not finite.*1\.bias \(1 of 2\)"):
        export_network(network, tmp_path / f"n.{suffix}", (1, 2, 2))
    assert not list(tmp_path.iterdir())


def test_onnx_needs_an_image_shape_from_the_network_or_the_caller(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    export_network(network, tmp_path / "n.pth")
    with pytest.raises(ValueError, match=r"image_shape must be given for ONNX.*such as \[3, 32, 32\]"):
        export_network(network, tmp_path / "n.onnx")
    with pytest.raises(ValueError, match=r"image_shape \[1, 3, 2\] does not suit Sequential: mat1 and mat2"):
        export_network(network, tmp_path / "n.onnx", (1, 3, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["n.pth"]


def test_nothing_is_written_if_one_of_the_exports_would_fail(tmp_path: Path) -> None:
    (tmp_path / "network.onnx").touch()
    with pytest.raises(FileExistsError, match=r"network\.onnx exists"):
        check_export(MNISTCNN(), [tmp_path / "network.pth", tmp_path / "network.onnx"])
    with pytest.raises(ValueError, match=r"image_shape \[3, 32, 32\] does not suit MNISTCNN"):
        check_export(MNISTCNN(), [tmp_path / "a.pth", tmp_path / "a.onnx"], (3, 32, 32))


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "network.pth").mkdir()
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_network(MNISTCNN(), tmp_path / "network.pth", MNIST)


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_network(MNISTCNN(), path, MNIST)
    assert path.read_text() == "mine"


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"\.pth, \.safetensors, \.onnx, \.robustness\.pt, \.shaeiri\.pth, got 'network\.pt'"
    ):
        export_network(MNISTCNN(), tmp_path / "network.pt", MNIST)


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript.*pip install '\.\[onnx\]'"):
        export_network(MNISTCNN(), tmp_path / "network.onnx", MNIST)
