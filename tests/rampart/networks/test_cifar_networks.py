from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rampart.attacks import PGD
from rampart.networks import PreActResNet18, ResNet18, ResNet34, ResNet50, ResNet101, WideResNet
from rampart.networks.cifar_network import CHANNELS_LAST_FROM
from tests.rampart.networks.references import NARROW, compute_by_layers


def randomise_batchnorm(network: nn.Module) -> Any:
    """Give BatchNorm random statistics and affine parameters."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.fixture(params=NARROW)
def network(request: pytest.FixtureRequest) -> Any:
    return randomise_batchnorm(NARROW[request.param]().double())


def compare_with_layers(network: Any, n: int) -> None:
    images, labels = torch.rand(n, 3, 32, 32).double(), torch.arange(n) % 10
    results = []
    for forward in (network, lambda x: compute_by_layers(network, x)):
        inputs = images.clone().requires_grad_()
        logits = forward(inputs)
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, labels), [inputs, *network.parameters()])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("training", [True, False])
def test_folding_batchnorm_does_not_change_logits_or_gradients(network: Any, training: bool) -> None:
    compare_with_layers(network.train(training), 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["ResNet-18", "PreActResNet-18", "WRN-10-1"])
def test_channels_last_does_not_change_logits_or_gradients(kind: str, training: bool) -> None:
    compare_with_layers(randomise_batchnorm(NARROW[kind]().double()).train(training), CHANNELS_LAST_FROM)


@pytest.mark.parametrize("n", [1, CHANNELS_LAST_FROM])
def test_layers_of_the_published_width_are_folded_or_not_with_the_same_logits(n: int) -> None:
    network, images = randomise_batchnorm(ResNet18()).eval(), torch.rand(n, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), compute_by_layers(network, images), rtol=1e-4, atol=1e-4)


def test_batchnorm_without_running_statistics_normalises_by_the_batch(network: Any) -> None:
    images = torch.rand(3, 3, 32, 32).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    torch.testing.assert_close(network.eval()(images), compute_by_layers(network, images))


def test_synchronised_batchnorm_gives_the_same_logits(network: Any) -> None:
    images = torch.rand(3, 3, 32, 32).double()
    expected = compute_by_layers(network.eval(), images)
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(network)(images), expected)


def test_batchnorm_without_affine_parameters_only_normalises() -> None:
    network, images = randomise_batchnorm(ResNet18(width=4).double()), torch.rand(3, 3, 32, 32).double()
    network.layer2[0].bn1 = nn.BatchNorm2d(8, affine=False).double()
    torch.testing.assert_close(network.eval()(images), compute_by_layers(network, images))


def test_hooks_are_called_once_per_layer(network: Any) -> None:
    seen, layers = [], [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: seen.append(module))
    network.float().eval()(torch.rand(4, 3, 32, 32))
    assert len(seen) == len(layers)
    assert set(seen) == set(layers)


def batchnorm_names(*layers: str) -> set[str]:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{layer}.{kind}" for layer in layers for kind in kinds}


@pytest.mark.parametrize(
    ("make", "numbers", "names"),
    [
        (ResNet18, 11_173_962, {"bn1.running_mean", "layer4.1.conv2.weight", "linear.bias"}),
        (ResNet34, 21_282_122, {"layer2.0.shortcut.0.weight", "layer3.5.bn2.weight", "layer4.2.conv2.weight"}),
        (ResNet50, 23_520_842, {"layer1.0.shortcut.1.running_var", "layer3.5.conv3.weight", "layer4.2.bn3.bias"}),
        (ResNet101, 42_512_970, {"layer3.22.conv3.weight", "layer4.2.bn3.bias", "linear.weight"}),
        (PreActResNet18, 11_172_170, {"layer1.0.bn1.weight", "layer2.0.shortcut.0.weight", "bn.weight", "linear.bias"}),
        (WideResNet, 36_479_194, {"block1.layer.0.convShortcut.weight", "block3.layer.3.conv2.weight", "bn1.weight"}),
        (lambda: WideResNet(depth=34), 46_160_474, {"block3.layer.4.bn2.running_var", "fc.weight", "fc.bias"}),
    ],
)
def test_names_and_sizes_are_those_of_published_weights(make: Any, numbers: int, names: set[str]) -> None:
    with torch.device("meta"):
        network = make()
    assert names <= set(network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == numbers


def test_each_kind_of_block_has_exactly_the_published_names() -> None:
    with torch.device("meta"):
        names = {kind: set(make().state_dict()) for kind, make in NARROW.items()}
    convolutions = {f"layer2.0.{name}.weight" for name in ("conv1", "conv2", "conv3", "shortcut.0")}
    norms = batchnorm_names(*(f"layer2.0.{name}" for name in ("bn1", "bn2", "bn3", "shortcut.1")))
    expected = {
        "ResNet-18": {name for name in convolutions | norms if "3" not in name},
        "ResNet-50": convolutions | norms,
        "PreActResNet-18": {n for n in convolutions | norms if "3" not in n and "shortcut.1" not in n},
    }
    for kind, block in expected.items():
        assert {name for name in names[kind] if name.startswith("layer2.0.")} == block
        assert not any("layer2.1.shortcut" in name for name in names[kind])
    wide = batchnorm_names("bn1", "bn2") | {"conv1.weight", "conv2.weight"}
    assert {n for n in names["WRN-16-2"] if "block2.layer.1." in n} == {f"block2.layer.1.{n}" for n in wide}
    outside = {name for name in names["WRN-16-2"] if not name.startswith("block")}
    assert outside == {"normalize.mean", "normalize.std", "conv1.weight", "fc.weight", "fc.bias"} | batchnorm_names(
        "bn1"
    )


def test_initial_weights_of_a_wide_resnet_are_those_of_trades() -> None:
    network = WideResNet(depth=10, widen_factor=4)
    conv = network.get_submodule("block2.layer.0.conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)  # by the number of outputs
    assert not network.fc.bias.any()


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_each_network_can_be_attacked_and_trained(network: Any, batchnorm: Any) -> None:
    images, labels = torch.rand(2, 3, 32, 32).double(), torch.arange(2)
    adv = PGD(steps=2, batchnorm=batchnorm)(network, images, labels, eps="8/255")
    assert 0 < (adv - images).abs().max().item() <= 8 / 255 + 1e-12
    F.cross_entropy(network(adv), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_sizes_and_images_are_given_by_the_arguments(network: Any) -> None:
    settings = {**network.init_args, "num_classes": 3, "mean": (0.5,), "std": (0.25,)}
    made = type(network)(**settings)
    assert made.init_args == settings
    assert made.image_shape == (1, 32, 32)
    assert made(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet18(width=0), "width must be at least 1, got 0"),
        (lambda: PreActResNet18(num_classes=1), "num_classes must be at least 2, got 1"),
        (lambda: WideResNet(widen_factor=0), "widen_factor must be at least 1, got 0"),
        (lambda: WideResNet(depth=30), "depth must be 4 more than a multiple of 6, such as 28 or 34, got 30"),
        (lambda: WideResNet(depth=4), "depth must be 4 more than a multiple of 6, such as 28 or 34, got 4"),
    ],
)
def test_sizes_that_are_not_allowed_raise(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_images_with_another_number_of_channels_raise(network: Any) -> None:
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 4, 32, 32).double())


def test_images_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="ResNet18 has mean and std of 3 channels, and the images have 1"):
        ResNet18(width=2)(torch.rand(2, 1, 28, 28))
    assert ResNet18(width=2, mean=[0.5], std=[0.25])(torch.rand(2, 1, 28, 28)).shape == (2, 10)
