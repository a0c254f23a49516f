from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from rampart.files import load_weights
from rampart.networks import Normalize, ResNet18, ResNet50, WideResNet


def rename(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        renamed[name] = value
    return renamed


def torchvisions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return rename(state, {"shortcut": "downsample", "linear": "fc"})


def test_torchvisions_resnet_with_a_small_stem_gives_its_own_logits(tmp_path: Path) -> None:
    theirs: Any = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs(torch.rand(8, 3, 32, 32))  # changes the running statistics
    torch.save({"model": theirs.state_dict()}, tmp_path / "weights")
    ours, images = ResNet18(mean=(0, 0, 0), std=(1, 1, 1)), torch.rand(2, 3, 32, 32)
    line = str(load_weights(ours, tmp_path / "weights"))
    assert "found under key model" in line
    assert line.endswith("; names in the file: downsample is shortcut, fc is linear")
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: nn.Sequential(Normalize([0.5] * 3, [0.2] * 3), n)])
def test_wrapped_networks_and_prefixed_names_are_translated_too(wrap: Any, tmp_path: Path) -> None:
    source, target = ResNet50(width=2), ResNet50(width=2)
    torch.save({f"module.{name}": t for name, t in torchvisions(source.state_dict()).items()}, tmp_path / "weights")
    assert "fc is linear" in str(load_weights(wrap(target), tmp_path / "weights"))
    assert all(torch.equal(one, other) for one, other in zip(source.parameters(), target.parameters(), strict=True))


def test_a_wide_resnet_of_trades_is_loaded_without_its_unused_block(tmp_path: Path) -> None:
    source, target = WideResNet(depth=10, widen_factor=1), WideResNet(depth=10, widen_factor=1)
    unused = {f"sub_{name}": torch.ones(2) for name in source.state_dict() if name.startswith("block1")}
    torch.save(source.state_dict() | unused, tmp_path / "weights")
    assert str(load_weights(target, tmp_path / "weights")).endswith("; names in the file: sub_block1 is not used")
    assert all(torch.equal(one, other) for one, other in zip(source.parameters(), target.parameters(), strict=True))


def test_the_networks_own_names_are_not_translated(tmp_path: Path) -> None:
    network = ResNet18(width=2)
    torch.save({"fc": network.state_dict()}, tmp_path / "weights")
    assert "names in the file" not in str(load_weights(network, tmp_path / "weights"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": torch.ones(2, 3, 7, 7)}, r"conv1\.weight is \(2, 3, 7, 7\) in the file and \(2, 3, 3, 3\)"),
        ({"linear.weight": torch.ones(10, 16)}, r"layer2\.0\.shortcut\.0\.weight .* is missing in the file"),
    ],
)
def test_files_that_do_not_fit_after_translation_are_refused(changes: Any, message: str, tmp_path: Path) -> None:
    network = ResNet18(width=2)
    torch.save(torchvisions(network.state_dict()) | changes, tmp_path / "weights")
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "weights")
