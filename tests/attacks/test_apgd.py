import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from attacks import APGD, PGD
from attacks.losses import targeted_dlr
from networks import MNISTCNN


def test_checkpoints_are_the_papers() -> None:
    assert APGD(steps=100).checkpoints() == [22, 41, 57, 70, 80, 87, 93, 99]


def test_names_are_the_fields() -> None:
    assert [a.name for a in (APGD(), APGD(targets=9), APGD(loss="dlr", restarts=5))] == [
        "APGD-CE", "APGD-T", "APGD-DLRx5",
    ]  # fmt: skip


def test_targeted_dlr_is_equation_7() -> None:
    logits = torch.tensor([[1.0, 5, 3, 2, 0]])
    loss = targeted_dlr(logits, torch.tensor([1]), torch.tensor([3]))
    assert loss.item() == pytest.approx((2 - 5) / (5 - (2 + 1) / 2))
    with pytest.raises(ValueError, match="at least 4 classes, got 3"):
        targeted_dlr(logits[:, :3], torch.tensor([1]), torch.tensor([0]))


class Steep(nn.Module):
    """Smooth, never fooled: the loss of every point can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(49, 30)
        self.second = nn.Linear(30, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.tanh(3 * self.first(images.flatten(1))))
        return logits + 50 * F.one_hot(torch.zeros(len(images), dtype=torch.long), 4)


def test_climbs_as_high_as_the_published_code_and_higher_than_pgd() -> None:
    model, images, labels = Steep().eval(), torch.rand(40, 1, 7, 7), torch.zeros(40, dtype=torch.long)

    def mean_loss(adv: Tensor) -> float:
        return float((model(adv)[:, 1:].logsumexp(1) - model(adv)[:, 0]).mean())

    ours = mean_loss(APGD(loss=lambda logits, _: logits[:, 1:].logsumexp(1) - logits[:, 0])(model, images, labels, 0.1))
    theirs = APGDAttack(lambda x: model(x) - torch.tensor([50.0, 0, 0, 0]), eps=0.1, n_iter=100, seed=0)
    theirs.loss = "ce"
    published = mean_loss(theirs.perturb(images, labels, best_loss=True))
    short = mean_loss(PGD(steps=10)(model, images, labels, 0.1))
    assert ours == pytest.approx(published, abs=0.02)
    assert ours > short


def test_an_image_that_is_fooled_is_left_alone() -> None:
    """The cost is that of the images that stand."""
    network = MNISTCNN()
    images = torch.rand(30, 1, 28, 28)
    labels = network(images).argmax(1)
    sizes: list[int] = []
    network.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    adv = APGD(steps=30)(network, images, labels, eps=0.3)
    fooled = network(adv).argmax(1) != labels
    assert fooled.all()
    assert sizes[0] == 30
    assert sizes == [*sorted(sizes[:-1], reverse=True), 30]
    assert sum(sizes[:-1]) < 30 * 30
