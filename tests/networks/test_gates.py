import pytest
import torch
from torch import Tensor, nn

from networks import MNISTCNN
from networks.gates import HIGH, LOW, make_gates


def gates(network: MNISTCNN, images: Tensor) -> Tensor:
    """What the eight gates answer before pooling, ``(N, 8, 24, 24)``."""
    passed = network.conv1(images).relu()
    answers: Tensor = passed[:, 0:16:2] - passed[:, 1:16:2]
    return torch.cat([answers[:, :4], -answers[:, 4:]], 1)


def test_nothing_that_happens_to_black_and_white_gets_through() -> None:
    network = MNISTCNN(init="gates")
    clean = (torch.rand(8, 1, 28, 28) > 0.5).float()
    for adv in ((clean - LOW * (2 * clean - 1)), clean + LOW * (torch.rand_like(clean) * 2 - 1)):
        assert torch.allclose(network(adv.clamp(0, 1)), network(clean), atol=1e-4)


def test_a_gate_answers_from_0_to_1_for_one_pixel_bright_or_dark() -> None:
    network = MNISTCNN(init="gates")
    images = torch.rand(2, 1, 28, 28)
    answers = gates(network, images)
    for gate in range(8):
        down, across = 2 + gate // 2 % 2, 2 + gate % 2
        pixel = images[:, 0, down : down + 24, across : across + 24]
        bright = ((pixel - LOW) / (HIGH - LOW)).clamp(0, 1)
        assert torch.allclose(answers[:, gate], 1 - bright if gate >= 4 else bright, atol=1e-5)


def test_training_leaves_the_gates_and_the_weights_that_make_them_as_they_are() -> None:
    network = MNISTCNN(init="gates")
    before = network.conv1.weight.clone()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        images = torch.rand(4, 1, 28, 28, requires_grad=True)
        network(images).logsumexp(1).sum().backward()
        optimizer.step()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert torch.equal(network.conv1.weight, before)
    assert torch.equal(network.conv2.weight[:, 0:16:2], -network.conv2.weight[:, 1:16:2])
    clean = (torch.rand(8, 1, 28, 28) > 0.5).float()
    adv = (clean - LOW * (2 * clean - 1)).clamp(0, 1)
    assert torch.allclose(network(adv), network(clean), rtol=1e-4, atol=1e-4)


def test_the_papers_network_with_the_same_weights_answers_the_same() -> None:
    gated, plain = MNISTCNN(init="gates"), MNISTCNN()
    plain.load_state_dict(gated.state_dict())
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(plain(images), gated(images), atol=1e-5)


def test_weights_that_are_not_gates_are_refused() -> None:
    gated = MNISTCNN(init="gates")
    gated.load_state_dict(MNISTCNN(init="gates").state_dict())
    with pytest.raises(RuntimeError, match=r"conv2\.weight is not that of a network with gates"):
        gated.load_state_dict(MNISTCNN().state_dict())


@pytest.mark.parametrize("first", [nn.Conv2d(3, 32, 5), nn.Conv2d(1, 8, 5), nn.Conv2d(1, 32, 1)])
def test_a_layer_that_cant_hold_them_is_refused(first: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="gates need a convolution from 1 channel to 16 or more"):
        make_gates(first)
