import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.saved_settings import build, describe
from rampart.attacks import PGD
from rampart.networks import MNISTCNN
from rampart.objectives import AdversarialTraining, RandomLabelSmoothing


def read_target(loss: nn.Module, labels: Tensor) -> Tensor:
    """Return the target of each image: the gradient of the loss is softmax - target."""
    logits = torch.zeros(len(labels), 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(logits, labels), logits)
    return 0.2 - len(labels) * grad


def test_wrong_classes_have_random_shares_of_the_smoothing() -> None:
    labels = torch.arange(400) % 5
    one, other = (read_target(RandomLabelSmoothing(0.4), labels) for _ in range(2))
    right = F.one_hot(labels, 5).bool()
    for target in (one, other):
        torch.testing.assert_close(target[right], torch.full((400,), 0.6).double())
        torch.testing.assert_close(target.sum(1), torch.ones(400).double())
        assert (target[~right] >= 0).all()
        assert target[~right].std() > 0.03
    # On average the shares are equal.
    torch.testing.assert_close(one[~right].view(400, 4).mean(0), torch.full((4,), 0.1).double(), rtol=0, atol=0.01)
    assert not torch.equal(one, other)


def test_a_seed_repeats_the_loss_and_no_smoothing_is_the_cross_entropy(images: Tensor, labels: Tensor) -> None:
    network, losses = MNISTCNN(), []
    for _ in range(2):
        torch.manual_seed(7)
        generator = torch.Generator().manual_seed(1)
        objective = AdversarialTraining(loss=RandomLabelSmoothing(0.4))
        losses.append(objective(network, images, labels, PGD(steps=1), 0.1, generator).loss)
    assert torch.equal(*losses)
    logits = torch.randn(12, 10)
    torch.testing.assert_close(RandomLabelSmoothing(0)(logits, labels), F.cross_entropy(logits, labels))


def test_it_is_described_in_checkpoints() -> None:
    assert build(describe(RandomLabelSmoothing(0.3))).smoothing == 0.3


@pytest.mark.parametrize("smoothing", [-0.1, 1, float("nan")])
def test_a_smoothing_out_of_range_raises(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got"):
        RandomLabelSmoothing(smoothing)
