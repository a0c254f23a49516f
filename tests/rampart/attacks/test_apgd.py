from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from rampart.attacks import APGD, NORMS, NormName
from rampart.attacks.losses import targeted_dlr
from rampart.networks import MNISTCNN


def test_checkpoints_are_those_of_the_paper() -> None:
    assert APGD(steps=100).checkpoints() == [22, 41, 57, 70, 80, 87, 93, 99]


def test_name_has_the_kind_of_loss_and_restarts() -> None:
    assert [a.name for a in (APGD(), APGD(targets=9), APGD(loss="dlr", restarts=5))] == [
        "APGD-CE", "APGD-T", "APGD-DLRx5",
    ]  # fmt: skip


def test_targeted_dlr_is_equation_7() -> None:
    logits = torch.tensor([[1.0, 5, 3, 2, 0]])
    loss = targeted_dlr(logits, torch.tensor([1]), torch.tensor([3]))
    assert loss.item() == pytest.approx((2 - 5) / (5 - (2 + 1) / 2))
    with pytest.raises(ValueError, match="at least 4 classes, got 3"):
        targeted_dlr(logits[:, :3], torch.tensor([1]), torch.tensor([0]))


@pytest.fixture
def _double() -> Iterator[None]:
    """The published code keeps its losses in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 1.0)])
def test_the_result_equals_that_of_the_published_code(
    norm: NormName, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = nn.Sequential(nn.Flatten(), nn.Linear(49, 40), nn.Tanh(), nn.Linear(40, 5))
    network[1].weight.data *= 4  # curved enough that some steps fail and step sizes are halved
    images, labels = torch.rand(20, 1, 7, 7), torch.randint(5, (20,))
    lift = 50 * F.one_hot(labels, 5)  # never fooled, so that no image leaves the batch
    start = NORMS[norm].random_start(images, eps, None)
    monkeypatch.setattr(NORMS[norm], "random_start", lambda *_: start.clone())

    def unlifted(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits - lift, labels, reduction="none")

    ours = APGD(norm=norm, loss=unlifted)(lambda x: network(x) + lift, images, labels, eps)
    published = APGDAttack(network, n_iter=100, norm=norm, eps=eps)
    published.init_hyperparam(images)
    theirs = published.attack_single_run(images.clone(), labels, x_init=start.clone())[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_fooled_images_are_not_attacked_further() -> None:
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
