import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.bounds import interval_logits
from rampart.networks import CNN5, CNN7, MNISTCNN, GatedMNISTCNN, Normalize, PreActResNet18, ResNet18, WideResNet
from rampart.objectives import AWP, CROWNIBP, IBP, MTLIBP, SABR, Objective
from rampart.objectives.bound_regularisers import regularise_bounds

ATTACK = PGD(steps=1)


def small_cnn() -> Any:
    """Return a network as in Shi et al. 2021, in small and in float64, after their initialisation.

    No layer before BatchNorm has a bias: its gradient is rounding noise, which Adam amplifies.
    """
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    ).double()  # fmt: skip
    for layer in (network[0], network[3], network[7]):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel())
    return network


def batch(size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.arange(size) % 4


def bound_by_hand(
    network: nn.Sequential, images: Tensor, eps: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Any]:
    """Return the clean logits, the bounds of each ReLU's input and of the last layer's input, as papers write them."""
    lower, upper = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    relus = []
    for layer in list(network)[:-1]:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            over = [d for d in range(images.ndim) if d != 1]
            mean, var = images.mean(over), images.var(over, unbiased=False)
            shape = (1, -1, *[1] * (images.ndim - 2))
            scale, shift = layer.weight / (var + layer.eps).sqrt(), layer.bias
            one, other = ((x - mean.view(shape)) * scale.view(shape) + shift.view(shape) for x in (lower, upper))
            lower, upper = torch.minimum(one, other), torch.maximum(one, other)
            images = layer(images)
            continue
        if isinstance(layer, nn.Conv2d | nn.Linear):
            positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)

            def apply(x: Tensor, weight: Tensor, layer: Any = layer) -> Tensor:
                return F.linear(x, weight) if x.ndim == 2 else F.conv2d(x, weight, None, layer.stride, layer.padding)

            bias = 0 if layer.bias is None else layer.bias.view(1, -1, *[1] * (images.ndim - 2))
            lower, upper = (
                apply(lower, positive) + apply(upper, negative) + bias,
                apply(upper, positive) + apply(lower, negative) + bias,
            )
        else:
            if isinstance(layer, nn.ReLU):
                relus.append((lower, upper))
            lower, upper = layer(lower), layer(upper)
        images = layer(images)
    return network[-1](images), relus, (lower, upper)


def worst_by_hand(last: Any, lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
    rows = []
    for low, high, label in zip(lower, upper, labels, strict=True):
        weight, bias = last.weight - last.weight[label], last.bias - last.bias[label]
        rows.append(weight.clamp(min=0) @ high + weight.clamp(max=0) @ low + bias)
    return torch.stack(rows)


def regularise_by_hand(relus: list[tuple[Tensor, Tensor]], box_radius: Tensor, tau: float) -> Tensor:
    """Transcribe the two terms of Shi et al. 2021; a term that is no finite number is left out."""
    tightness, balance = [], []
    for lower, upper in relus:
        middle, radius = (lower + upper) / 2, ((upper - lower) / 2).mean()
        tightness.append(F.relu(tau - box_radius / max(radius, torch.tensor(1e-12))) / tau)
        mean_ratio = (middle * (lower > 0)).mean() / -(middle * (upper < 0)).mean()
        deviation = (middle - middle.mean()) ** 2
        variance_ratio = (deviation * (lower > 0)).sum() / (deviation * (upper < 0)).sum()
        ratios = [torch.minimum(x, 1 / x.clamp(min=1e-12)) for x in (mean_ratio, variance_ratio)]
        term = (F.relu(tau - ratios[0]) + F.relu(tau - ratios[1])) / tau
        balance.append(term if term.isfinite() else torch.zeros_like(term))
    return (sum(tightness) + sum(balance)) / torch.tensor(len(relus))


def loss_by_hand(network: nn.Sequential, images: Tensor, labels: Tensor, eps: float, target: float) -> Tensor:
    clean, relus, last = bound_by_hand(network, images, eps or 1e-6)
    radius = (((images + (eps or 1e-6)).clamp(max=1) - (images - (eps or 1e-6)).clamp(min=0)) / 2).mean()
    weight = 0.5 * (1 - eps / target)
    main = clean if eps == 0 else worst_by_hand(network[-1], last[0], last[1], labels)
    return F.cross_entropy(main, labels) + weight * regularise_by_hand(relus, radius, 0.5)


def test_training_steps_equal_those_of_fast_ibp_training_by_hand() -> None:
    network = small_cnn()
    by_hand = copy.deepcopy(network)
    optimizers = [torch.optim.Adam(one.parameters(), 5e-4) for one in (network, by_hand)]
    for step, eps in enumerate((0.0, 0.05, 0.15, 0.3)):
        images, labels = batch(seed=step)
        losses = [
            IBP(target_eps=0.3)(network, images, labels, ATTACK, eps).loss,
            loss_by_hand(by_hand, images, labels, eps, 0.3),
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
        for one, loss, optimizer in zip((network, by_hand), losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(one.parameters(), 10.0)
            optimizer.step()
    for (name, ours), theirs in zip(network.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("eps", [1e-6, 0.05, 0.5])
def test_regularisers_equal_the_published_formulas(eps: float) -> None:
    network, (images, _) = small_cnn(), batch()
    for layer in (network[1], network[4]):  # Balances of all sizes: most neurons active, and most inactive.
        nn.init.normal_(layer.bias, 0.5 if layer is network[1] else -0.5)
    _, relus, _ = bound_by_hand(network, images, eps)
    radius = ((images + eps).clamp(max=1) - (images - eps).clamp(min=0)).mean() / 2
    for tau in (0.5, 0.9):
        operation = interval_logits(network, images, eps, images, trace=True).operation
        assert operation is not None
        torch.testing.assert_close(regularise_bounds(operation, tau), regularise_by_hand(relus, radius, tau))


@pytest.mark.parametrize("shift", [-100.0, 100.0, 0.0])
def test_undefined_balances_are_left_out_with_finite_gradients(shift: float) -> None:
    network, (images, labels) = small_cnn(), batch()
    for number in (1, 4, 8):
        nn.init.constant_(network[number].bias, shift)
    for eps in (0.0, 0.9):  # All neurons are inactive, active, or neither of them for sure.
        output = IBP(target_eps=1)(network, images, labels, ATTACK, eps)
        output.loss.backward()
        assert output.loss.isfinite()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_the_radius_of_the_first_layer_is_that_after_normalisation() -> None:
    network, (images, _) = small_cnn(), batch()
    interval = interval_logits(nn.Sequential(Normalize([0.0], [0.1]), *network).double(), images, 0.01, images, True)
    radius = ((images + 0.01).clamp(max=1) - (images - 0.01).clamp(min=0)).mean() / 2 / 0.1
    _, relus, _ = bound_by_hand(network, images, 0.01)  # BatchNorm undoes the scale, up to its eps.
    assert interval.operation is not None
    torch.testing.assert_close(
        regularise_bounds(interval.operation, 0.9), regularise_by_hand(relus, radius, 0.9), rtol=1e-2, atol=0
    )


def test_without_relu_there_is_nothing_to_regularise() -> None:
    images, labels = batch()
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    output = IBP(target_eps=0.2)(network, images, labels, ATTACK, 0.1)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert output.parts["regulariser"] == 0


def test_clean_weight_moves_with_eps_from_start_to_end() -> None:
    network, (images, labels) = small_cnn(), batch()
    objective = IBP(target_eps="0.4", clean_weight_start=1, clean_weight_end=0.5, regularisation=0)
    for eps, kappa in {0.0: 1.0, 0.1: 0.875, 0.4: 0.5, 0.5: 0.5}.items():
        output = objective(network, images, labels, ATTACK, eps)
        clean, worst = output.parts["clean_loss"], output.parts["adv_loss"]
        torch.testing.assert_close(output.loss, kappa * clean + (1 - kappa) * worst)
        assert worst >= clean
    torch.testing.assert_close(clean, F.cross_entropy(network(images), labels))
    torch.testing.assert_close(worst, F.cross_entropy(output.logits, labels))


def test_regularisers_end_with_the_ramp_and_l1_does_not() -> None:
    network, (images, labels) = small_cnn(), batch()
    with_l1 = IBP(target_eps=0.2, l1=1e-3)
    for eps in (0.0, 0.1, 0.2, 0.3):
        output = with_l1(network, images, labels, ATTACK, eps)
        plain = IBP(target_eps=0.2)(network, images, labels, ATTACK, eps)
        weights = sum(network[number].weight.abs().sum() for number in (0, 3, 7, 10))
        torch.testing.assert_close(output.loss, plain.loss + 1e-3 * weights)
        assert (plain.parts["regulariser"] > 0) == (eps < 0.2)


def test_running_statistics_are_those_of_one_pass_of_the_clean_batch() -> None:
    network, (images, labels) = small_cnn(), batch()
    plain = copy.deepcopy(network)
    plain(images)
    IBP(target_eps=0.2)(network, images, labels, ATTACK, 0.1)
    torch.testing.assert_close(network.state_dict(), plain.state_dict())


def test_gradients_are_those_of_finite_differences() -> None:
    network, (images, labels) = small_cnn(), batch(6)
    objective = IBP(target_eps=0.2, clean_weight_start=0.3, clean_weight_end=0.3, l1=1e-3)
    for eps in (0.0, 0.05):
        gradients = torch.autograd.grad(
            objective(network, images, labels, ATTACK, eps).loss, list(network.parameters()), allow_unused=True
        )
        for weight, gradient in zip(network.parameters(), gradients, strict=True):
            if weight.ndim == 1 or gradient is None:
                continue
            step = 1e-6 * torch.randn_like(weight)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.add_(sign * step)
                    values.append(objective(network, images, labels, ATTACK, eps).loss)
                    weight.sub_(sign * step)
            torch.testing.assert_close((values[0] - values[1]) / 2, (gradient * step).sum(), rtol=1e-3, atol=1e-10)


NETWORKS: dict[str, Any] = {
    "MNISTCNN": (MNISTCNN, (1, 28, 28)),
    "CNN5": (lambda: CNN5(width=2, hidden=8), (1, 28, 28)),
    "CNN7": (lambda: CNN7(width=2, hidden=8), (1, 28, 28)),
    "GatedMNISTCNN": (GatedMNISTCNN, (1, 28, 28)),
    "ResNet18": (lambda: ResNet18(width=2), (3, 32, 32)),
    "PreActResNet18": (lambda: PreActResNet18(width=2), (3, 32, 32)),
    "WideResNet": (lambda: WideResNet(depth=10, widen_factor=1), (3, 32, 32)),
}
OBJECTIVES: dict[str, Objective] = {
    "IBP": IBP(target_eps=0.01, l1=1e-6),
    "CROWN-IBP": CROWNIBP(target_eps=0.01),
    "SABR": SABR(target_eps=0.01),
    "MTL-IBP": MTLIBP(weight=0.5, target_eps=0.01),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_trained_for_certificates(name: str) -> None:
    make, shape = NETWORKS[name]
    network, images, labels = make().train(), torch.rand(3, *shape), torch.arange(3)
    for objective in OBJECTIVES.values():
        objective.check(ATTACK, network)
        for eps in (0.0, 0.001, 0.01):
            output = objective(network, images, labels, ATTACK, eps)
            weights = [w for w in network.parameters() if w.requires_grad]
            gradients = torch.autograd.grad(output.loss, weights, allow_unused=True)
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("objective", [IBP(0.2), CROWNIBP(0.2), SABR(0.2), MTLIBP(0.5, target_eps=0.2)])
def test_awp_perturbs_the_weights_of_a_bound(objective: Objective) -> None:
    network, (images, labels) = small_cnn(), batch()
    before = copy.deepcopy(network)
    AWP(objective).check(ATTACK, network)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    output = AWP(objective, gamma=0.01)(network, images, labels, ATTACK, 0.1, generators[0])
    plain = objective(before, images, labels, ATTACK, 0.1, generators[1])
    assert output.loss > plain.loss
    assert AWP(objective).certifies == objective.certifies == isinstance(objective, IBP)
    torch.testing.assert_close(output.parts["adv_loss"], plain.parts["adv_loss"].detach())
    torch.testing.assert_close(network.state_dict(), before.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_eps": 0}, "target_eps must be above 0, the end of the ramp"),
        ({"target_eps": 8}, r"target_eps must be in \[0, 1\] .*did you mean 8/255"),
        ({"target_eps": 0.4, "clean_weight_start": 1.5}, r"clean_weight_start must be in \[0, 1\], got 1.5"),
        ({"target_eps": 0.4, "clean_weight_end": math.nan}, r"clean_weight_end must be in \[0, 1\], got nan"),
        ({"target_eps": 0.4, "regularisation": -1}, "regularisation must be at least 0, got -1"),
        ({"target_eps": 0.4, "l1": -1e-6}, "l1 must be at least 0, got -1e-06"),
        ({"target_eps": 0.4, "tau": 0}, "tau must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IBP(**settings)


def test_wrong_labels_and_other_norms_raise() -> None:
    network, (images, labels) = small_cnn(), batch()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\)"):
        IBP(target_eps=0.1)(network, images, labels + 1, ATTACK, 0.1)
    with pytest.raises(ValueError, match="IBP bounds the l-inf ball, got an attack with the norm L2"):
        IBP(target_eps=0.1)(network, images, labels, PGD(norm="L2"), 0.1)
