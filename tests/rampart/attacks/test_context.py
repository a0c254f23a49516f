from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import APGD, FAB, PGD, AtImage, Attack, Square
from rampart.networks import MNISTCNN
from tests.conftest import small_network


def state(model: Any) -> list[Any]:
    return [
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad, p.detach().clone()) for p in model.parameters()],
        [b.clone() for b in model.buffers()],
    ]


def assert_same_state(model: nn.Module, before: list[Any]) -> None:
    modes, parameters, buffers = before
    assert [m.training for m in model.modules()] == modes
    for p, (requires_grad, grad, value) in zip(model.parameters(), parameters, strict=True):
        assert p.requires_grad == requires_grad
        assert p.grad is grad
        assert torch.equal(p, value)
    for b, value in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(b, value)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
@pytest.mark.parametrize("training", [True, False])
def test_an_attack_does_not_change_the_model(images: Tensor, labels: Tensor, batchnorm: Any, training: bool) -> None:
    model = small_network().train(training)
    model[4].eval()
    model[6].weight.grad = torch.ones_like(model[6].weight)
    before = state(model)
    PGD(steps=3, batchnorm=batchnorm, iterate="best", restarts=2)(model, images, labels, eps=0.2)
    assert_same_state(model, before)


def test_the_model_is_restored_after_an_exception(images: Tensor, labels: Tensor) -> None:
    model = small_network().train()
    before = state(model)

    def failing(logits: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        PGD(loss=failing, batchnorm="train")(model, images, labels, eps=0.1)
    assert_same_state(model, before)


def test_batchnorm_mode_selects_the_statistics(images: Tensor, labels: Tensor) -> None:
    model = small_network().train()
    images = images * 0.3
    # Off-centre running statistics, so that the two kinds of statistics differ.
    model[1].running_mean.fill_(3.0)
    settings: dict[str, Any] = {"steps": 3, "start": AtImage()}
    by_running = PGD(**settings)(model, images, labels, eps=0.1)
    by_batch = PGD(**settings, batchnorm="train")(model, images, labels, eps=0.1)
    assert not torch.equal(by_running, by_batch)
    assert model[1].num_batches_tracked == 0
    PGD(**settings, batchnorm="train_and_update")(model, images, labels, eps=0.1)
    assert model[1].num_batches_tracked == 3
    assert model[1].running_mean[0] < 3.0


@pytest.mark.parametrize("batchnorm", ["train", "train_and_update"])
def test_batchnorm_in_eval_mode_keeps_its_statistics(images: Tensor, labels: Tensor, batchnorm: Any) -> None:
    model = small_network().train()
    model[4].eval()
    PGD(steps=2, batchnorm=batchnorm)(model, images, labels, eps=0.1)
    assert model[4].num_batches_tracked == 0
    model.eval()
    before = state(model)
    PGD(steps=2, batchnorm=batchnorm)(model, images, labels, eps=0.1)
    assert_same_state(model, before)


def test_an_attack_between_forward_and_backward_does_not_break_the_graph(images: Tensor, labels: Tensor) -> None:
    model = small_network().eval()
    loss = F.cross_entropy(model(images), labels)
    PGD(steps=2, batchnorm="train")(model, images, labels, eps=0.1)
    loss.backward()
    assert model[6].weight.grad is not None


def test_no_gradient_of_the_weights_is_computed(images: Tensor, labels: Tensor) -> None:
    model = small_network()
    calls = []
    for p in model.parameters():
        if p.requires_grad:
            p.register_hook(lambda grad: calls.append(grad))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        PGD(steps=2)(model, images, labels, eps=0.1)
    assert not calls
    frozen = []
    model.register_forward_pre_hook(lambda m, _: frozen.append(all(not p.requires_grad for p in m.parameters())))
    PGD(steps=2)(model, images, labels, eps=0.1)
    assert frozen == [True, True]


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attacks_work_in_every_gradient_mode(images: Tensor, labels: Tensor, surroundings: Any) -> None:
    model = MNISTCNN()
    expected = PGD(steps=4, start=AtImage())(model, images, labels, eps=0.3)
    with surroundings():
        # Autograd does not work on tensors that were created in inference mode.
        adv = PGD(steps=4, start=AtImage())(model, images + 0, labels + 0, eps=0.3)
    torch.testing.assert_close(adv, expected)
    assert (adv - images).abs().max() > 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attacks_work_under_autocast(images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    model = MNISTCNN()
    with torch.no_grad():
        # So confident that the float16 gradients of most images would round to 0.
        model.fc2.weight.mul_(200)
    labels = model(images).argmax(1)
    with torch.autocast("cpu", dtype):
        adv = PGD(steps=3, start=AtImage())(model, images, labels, eps=0.1)
    moved = (adv - images).flatten(1).abs().amax(1)
    reference = PGD(steps=3, start=AtImage())(model, images, labels, eps=0.1)
    expected = (reference - images).flatten(1).abs().amax(1)
    assert adv.dtype == torch.float32
    assert ((moved > 0.05) == (expected > 0.05)).float().mean() > 0.9
    assert moved.max() <= 0.1


class Normalises(nn.Module):
    """A network that normalises its input in one of several ways, in place or not."""

    def __init__(self, way: str, in_place: bool) -> None:
        super().__init__()
        self.way, self.in_place = way, in_place
        self.clips = nn.Hardtanh(0.1, 0.9, inplace=in_place)
        self.rectifies = nn.ReLU(inplace=in_place)
        self.network = MNISTCNN()

    def forward(self, images: Tensor) -> Tensor:
        if self.way == "hardtanh":
            images = self.clips(images)
        elif self.way == "relu":
            images = self.rectifies(images)
        elif self.way == "index":
            images = images if self.in_place else images.clone()
            images[:, :, :3] = 0
        elif self.in_place:
            images.sub_(0.13).div_(0.31)
        else:
            images = (images - 0.13) / 0.31
        logits: Tensor = self.network(images)
        return logits


@pytest.mark.parametrize("way", ["sub", "hardtanh", "relu", "index"])
@pytest.mark.parametrize(
    "attack",
    [PGD(steps=3), PGD(steps=3, iterate="best", restarts=2), APGD(steps=3), FAB(steps=3, targets=1), Square(queries=5)],
    ids=lambda attack: attack.name,
)
def test_networks_that_change_their_input_in_place_give_the_same_result(
    images: Tensor, attack: Attack, way: str
) -> None:
    copying = Normalises(way, in_place=False)
    writing = Normalises(way, in_place=True)
    writing.load_state_dict(copying.state_dict())
    labels, before = copying(images).argmax(1), images.clone()
    results = [attack(model, images, labels, 0.1, torch.Generator().manual_seed(0)) for model in (copying, writing)]
    assert torch.equal(images, before)
    assert torch.equal(*results)
    weights = [(model.network.fc2.weight,) for model in (copying, writing)]
    gradients = [
        PGD(steps=2).with_weight_gradient(model, images, labels, 0.1, weight, torch.Generator().manual_seed(0))
        for model, weight in zip((copying, writing), weights, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert torch.equal(images, before)
