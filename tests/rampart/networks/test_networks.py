import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor

from rampart.networks import MNISTCNN, Normalize


def papers_forward(network: MNISTCNN, images: Tensor) -> Tensor:
    """Return logits in the order of the paper's description: ReLU before pooling."""
    x = F.max_pool2d(F.relu(network.conv1(images)), 2)
    x = F.max_pool2d(F.relu(network.conv2(x)), 2)
    logits: Tensor = network.fc2(F.relu(network.fc1(x.reshape(-1, 1024))))
    return logits


def test_mnist_cnn_computes_the_papers_function_and_has_its_parameter_names(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN().double()
    results = []
    for forward in (network, lambda x: papers_forward(network, x)):
        inputs = images.double().requires_grad_()
        logits = forward(inputs)
        grads = torch.autograd.grad(F.cross_entropy(logits, labels), [inputs, *network.parameters()])
        results.append([logits, *grads])
    for ours, papers in zip(*results, strict=True):
        torch.testing.assert_close(ours, papers)
    assert list(network.state_dict()) == [
        f"{n}.{p}" for n in ("conv1", "conv2", "fc1", "fc2") for p in ("weight", "bias")
    ]
    assert sum(p.numel() for p in network.parameters()) == 1_111_946


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 27, 27), (1, 28, 28)])
def test_mnist_cnn_raises_for_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        MNISTCNN()(torch.rand(shape))


def test_hooks_of_the_first_layer_take_effect(images: Tensor) -> None:
    network = MNISTCNN()
    before = network(images)
    torch.nn.utils.prune.random_unstructured(network.conv1, "weight", 0.5)
    for _ in range(2):
        assert not torch.equal(network(images), before)
        network(images).sum().backward()
    assert network.conv1.weight_orig.grad is not None


def test_mnist_cnn_runs_in_bfloat16_under_autocast(images: Tensor) -> None:
    network = MNISTCNN()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(images.bfloat16()).float(), network(images).float(), atol=0.02, rtol=0.05)


def test_normalize_is_per_channel_and_has_no_parameters() -> None:
    layer = Normalize([0.5, 0.4, 0.3], [0.2, 0.1, 0.5])
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, c] - m) / s for c, (m, s) in enumerate([(0.5, 0.2), (0.4, 0.1), (0.3, 0.5)])], 1)
    torch.testing.assert_close(layer(images), expected)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.2, 0.2]), ([0.5], [0.0]), ([0.5], [-1.0])])
def test_normalize_raises_for_invalid_mean_or_std(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="std must"):
        Normalize(mean, std)
