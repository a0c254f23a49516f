import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import MNISTCNN, ResNet18, export_network
from networks.weights import load_weights

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


class AuthorsNetwork(nn.Module):
    """The network as the authors' MNIST/test.py builds it."""

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


def test_the_authors_network_loads_the_pth_and_answers_the_same(tmp_path: Path, images: Tensor) -> None:
    network, theirs = MNISTCNN(), AuthorsNetwork()
    export_network(network, tmp_path / "network.pth", MNIST)
    theirs.load_state_dict(torch.load(tmp_path / "network.pth", weights_only=True))
    torch.testing.assert_close(theirs(images), network(images))


def test_weights_come_back_equal_from_both_weights_files(tmp_path: Path) -> None:
    network = ResNet18()
    for suffix in ("pth", "safetensors"):
        export_network(network, tmp_path / f"network.{suffix}", CIFAR)
        other = ResNet18()
        load_weights(other, tmp_path / f"network.{suffix}")
        assert all(
            torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize(("build", "shape"), [(MNISTCNN, MNIST), (ResNet18, CIFAR)])
def test_onnx_answers_as_the_network_does_for_any_number_of_images(tmp_path: Path, build: Any, shape: Any) -> None:
    network = build()
    network(torch.rand(64, *shape))  # moves running statistics away from where they start
    network.conv1.eval()
    export_network(network, tmp_path / "network.onnx", shape)
    assert network.training
    assert not network.conv1.training
    network.eval()
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "images"
    assert given.shape[1:] == list(shape)
    for n in (1, 2, 5, 40):
        images = torch.rand(n, *shape)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(images), rtol=1e-3, atol=1e-4)


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_network(MNISTCNN(), path, MNIST)
    assert path.read_text() == "mine"


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.pth, \.safetensors, \.onnx, got 'network\.pt'"):
        export_network(MNISTCNN(), tmp_path / "network.pt", MNIST)


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript.*pip install '\.\[onnx\]'"):
        export_network(MNISTCNN(), tmp_path / "network.onnx", MNIST)
