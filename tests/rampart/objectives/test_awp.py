import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.examples.my_objective import CleanAndAdversarial
from rampart.attacks import PGD, AtImage, Attack
from rampart.networks import MNISTCNN, GatedMNISTCNN, ResNet18
from rampart.objectives import AWP, MTLIBP, TRADES, AdversarialTraining, Objective, ObjectiveOutput
from tests.conftest import ROOT, small_network
from tests.rampart.objectives.awp_process import Loss, batches

PGD_3 = PGD(steps=3, step_size=0.05)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def gradients(network: nn.Module, loss: Tensor) -> list[Tensor | None]:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, weights, allow_unused=True))


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()


def test_two_updates_equal_those_written_out_by_hand() -> None:
    """SGD on a convolution, BatchNorm and a linear layer, in float64."""
    images, labels = torch.rand(8, 1, 6, 6, dtype=torch.float64), torch.arange(8) % 4
    network, attack = two_layers(), PGD(steps=2, step_size=0.04, start=AtImage())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        AWP(gamma=0.05)(network, images, labels, attack, 0.1).loss.backward()
        optimizer.step()
    values, mean, var = update_twice_by_hand(images, labels)
    for ours, theirs in zip(network.parameters(), values, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close([network[1].running_mean, network[1].running_var], [mean, var], rtol=0, atol=1e-12)
    assert network[1].num_batches_tracked == 2


def update_twice_by_hand(images: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return weights, biases, running mean and running variance after two updates of `two_layers`."""
    values = [value.detach().clone() for value in two_layers().parameters()]
    running_mean, running_var = torch.zeros(3).double(), torch.ones(3).double()
    momentum = [torch.zeros_like(value) for value in values]

    def loss(values: list[Tensor], x: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Tensor:
        w, b, scale, shift, u, c = values
        x = F.conv2d(x, w, b)
        mean = x.mean((0, 2, 3)) if mean is None else mean
        var = x.var((0, 2, 3), correction=0) if var is None else var
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None]
        return F.cross_entropy((x + shift[:, None, None]).relu().flatten(1) @ u.T + c, labels)

    for _ in range(2):
        adv = images
        for _ in range(2):
            adv = adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(values, adv, running_mean, running_var), adv)
            adv = (images + (adv.detach() + 0.04 * grad.sign() - images).clamp(-0.1, 0.1)).clamp(0, 1)
        outputs = F.conv2d(adv, values[0], values[1])
        running_mean = 0.9 * running_mean + 0.1 * outputs.mean((0, 2, 3))
        running_var = 0.9 * running_var + 0.1 * outputs.var((0, 2, 3))
        leaves = [value.clone().requires_grad_() for value in values]
        grads = torch.autograd.grad(loss(leaves, adv), leaves)
        moved = [value.clone() for value in values]
        for i in (0, 4):
            moved[i] += 0.05 * values[i].norm() / grads[i].norm() * grads[i]
        moved = [value.requires_grad_() for value in moved]
        grads = torch.autograd.grad(loss(moved, adv), moved)
        momentum = [0.9 * m + g + 0.01 * v for m, g, v in zip(momentum, grads, values, strict=True)]
        values = [v - 0.3 * m for v, m in zip(values, momentum, strict=True)]
    return values, running_mean, running_var


OBJECTIVES: dict[str, Objective] = {
    "adversarial training": AdversarialTraining(),
    "smoothed": AdversarialTraining(nn.CrossEntropyLoss(label_smoothing=0.4)),
    "trades": TRADES(),
    "mtl-ibp": MTLIBP(weight=0.3),
    "custom": CleanAndAdversarial(0.3),
}


def frozen_resnet() -> nn.Module:
    """Return a network whose BatchNorm is folded into its convolutions, in training too."""
    return ResNet18(mean=(0.5,), std=(0.3,), width=2).eval()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("make", [MNISTCNN, GatedMNISTCNN, small_network, frozen_resnet])
def test_the_gradient_is_that_of_the_objective_at_perturbed_weights(
    images: Tensor, labels: Tensor, name: str, make: Any
) -> None:
    objective, network, images = OBJECTIVES[name], make().double(), images.double()
    if make is small_network:
        network.eval()  # Dropout is random.
        network[1].train()
    by_hand, before = copy.deepcopy(network), copy.deepcopy(network.state_dict())
    AWP(objective).check(PGD_3, network)
    output = AWP(objective, gamma=0.1)(network, images, labels, PGD_3, 0.1, generator())

    kept = Kept(PGD_3, [])
    at_w = objective(by_hand, images, labels, kept, 0.1, generator())
    statistics = copy.deepcopy(dict(by_hand.named_buffers()))
    perturb_by_hand(by_hand, at_w.loss, 0.1)
    at_v = objective(by_hand, images, labels, Kept(PGD_3, kept.images), 0.1)

    torch.testing.assert_close(output.loss, at_v.loss)
    torch.testing.assert_close(gradients(network, output.loss), gradients(by_hand, at_v.loss))
    torch.testing.assert_close(output.logits, at_w.logits.detach())
    assert output.parts.keys() == {"adv_loss"} | at_w.parts.keys()
    torch.testing.assert_close(output.parts["adv_loss"], at_w.parts.get("adv_loss", at_w.loss).detach())
    assert output.loss > at_w.loss
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(dict(network.named_buffers()), statistics)


class Kept(Attack):
    """An attack that keeps the images it finds, and returns the images it has without searching."""

    norm = "Linf"
    name = "kept"

    def __init__(self, attack: Attack, images: list[Tensor]) -> None:
        self.attack, self.images = attack, images

    def with_loss(self, loss: Any) -> Any:
        return Kept(self.attack.with_loss(loss), self.images)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.images:
            self.images.append(self.attack(*args, **kwargs))
        return self.images[0]


def perturb_by_hand(network: nn.Module, loss: Tensor, gamma: float) -> None:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight, grad in zip(weights, gradients(network, loss), strict=True):
        if grad is not None and weight.ndim > 1:
            weight.data += gamma * weight.norm() / grad.norm() * grad


def test_the_attack_runs_once(images: Tensor, labels: Tensor) -> None:
    network, passes = MNISTCNN(), 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    network.register_forward_pre_hook(count)
    AWP()(network, images, labels, PGD_3, 0.1)
    assert passes == 3 + 2
    passes = 0
    AWP(gamma=0)(network, images, labels, PGD_3, 0.1)
    AWP(from_eps=0.2)(network, images, labels, PGD_3, 0.1)
    assert passes == 2 * (3 + 1)


@dataclass(frozen=True)
class Noisy(Objective):
    """Attack only some images, and add noise to the result: both by the generator."""

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, attack: Any, eps: float, generator: Any = None
    ) -> ObjectiveOutput:
        adv = images
        if torch.rand((), generator=generator) < 0.5:
            adv = attack(network, images, labels, eps, generator=generator)
        if torch.rand((), generator=generator) < 0.5:
            adv = attack(network, adv, labels, eps, generator)
        logits = network(adv + 0.1 * torch.rand(adv.shape, generator=generator))
        return ObjectiveOutput(F.cross_entropy(logits, labels), logits, {})


@pytest.mark.parametrize("seed", range(4))
def test_both_passes_use_the_same_random_numbers(images: Tensor, labels: Tensor, seed: int) -> None:
    network, (one, other) = MNISTCNN(), [torch.Generator().manual_seed(seed) for _ in range(2)]
    at_w = Noisy()(network, images, labels, PGD_3, 0.1, one)
    output = AWP(Noisy(), gamma=1e-9)(network, images, labels, PGD_3, 0.1, other)
    torch.testing.assert_close(output.loss, at_w.loss)
    assert torch.equal(one.get_state(), other.get_state())


def test_weights_are_perturbed_from_an_eps_on(images: Tensor, labels: Tensor) -> None:
    network, ramp = MNISTCNN(), AWP(gamma=0.1, from_eps="8/255")
    for eps in (0, 7 / 255, 8 / 255, 0.1):
        plain = AdversarialTraining()(network, images, labels, PGD_3, eps, generator()).loss
        loss = ramp(network, images, labels, PGD_3, eps, generator()).loss
        assert (loss > plain) == (eps >= 8 / 255)
        assert eps >= 8 / 255 or torch.equal(loss, plain)
        assert AWP(gamma=0.1)(network, images, labels, PGD_3, eps, generator()).loss > plain


def test_a_loss_without_gradient_perturbs_nothing(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    network.fc2.weight.data.zero_()  # All other weights have a gradient of zero.
    output = AWP()(network, images, labels, PGD_3, 0.1)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(network, output.loss))
    network.requires_grad_(False)
    network.fc2.bias.requires_grad_()
    (gradient,) = gradients(network, AWP()(network, images, labels, PGD_3, 0.1).loss)
    assert gradient is not None


def test_settings_out_of_range_raise() -> None:
    for gamma in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="gamma must be at least 0, got"):
            AWP(gamma=gamma)
    with pytest.raises(ValueError, match="from_eps must be a number"):
        AWP(from_eps="x")
    with pytest.raises(ValueError, match=r"from_eps must be in \[0, 1\] for the norm Linf.*did you mean 8/255"):
        AWP(from_eps=8).check(PGD_3, MNISTCNN())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_gradient_is_right_under_autocast(images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    network = MNISTCNN()
    kept = Kept(PGD_3, [])
    expected = gradients(network, AWP(gamma=0.05)(network, images, labels, kept, 0.1).loss)
    with torch.autocast("cpu", dtype):
        output = AWP(gamma=0.05)(network, images, labels, kept, 0.1)
    for ours, wanted in zip(gradients(network, output.loss), expected, strict=True):
        assert ours is not None
        assert wanted is not None
        assert F.cosine_similarity(ours.flatten(), wanted.flatten(), 0) > 0.9
        torch.testing.assert_close(ours.norm(), wanted.norm(), rtol=0.1, atol=0)


def test_two_processes_average_the_gradients_of_their_own_perturbations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.rampart.objectives.awp_process"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank), tmp_path], cwd=ROOT, env=environment) for rank in range(2)]
    assert [process.wait(240) for process in processes] == [0, 0]
    ranks = []
    for rank in range(2):
        module = Loss()
        for batch in batches(rank):
            module(*batch).backward()
        ranks.append([parameter.grad for parameter in module.parameters()])
    mean = [(one + other) / 2 for one, other in zip(*ranks, strict=True)]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), mean)
