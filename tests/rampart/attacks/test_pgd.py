from collections import Counter
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rampart.attacks import PGD, AtImage, Level, NamedAttack, NormName, Uniform
from rampart.networks import MNISTCNN
from tests.conftest import LinearModel, small_network

FGSM = PGD(steps=1, relative_step_size=1.0, start=AtImage())


class NonFinite(nn.Module):
    """Returns NaN, inf and -inf for every image."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])[: self.num_classes]
        return images.flatten(1)[:, : self.num_classes] * bad


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.one_of(st.floats(0, 1), st.sampled_from([1e-8, 8 / 255, 0.1, 0.3, 0.4])),
    steps=st.integers(0, 5),
    relative=st.sampled_from([0.1, 1.0, 50.0]),
    start=st.sampled_from([Uniform(), AtImage(), Level(0.4, 0.6)]),
    restarts=st.integers(1, 2),
    iterate=st.sampled_from(["last", "best"]),
    loss=st.sampled_from(["cross_entropy", "margin", "dlr"]),
    step_schedule=st.sampled_from(["constant", "linear"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    non_finite=st.booleans(),
)
def test_result_is_inside_ball_and_box_for_any_setting(
    norm: NormName, eps: float, dtype: torch.dtype, non_finite: bool, relative: float, **fields: Any
) -> None:
    images = torch.rand(5, 1, 28, 28, dtype=dtype)
    images[0] = images[0].round()
    model = NonFinite() if non_finite else small_network(3).to(dtype)
    attack = PGD(norm=norm, relative_step_size=relative, **fields)
    adv = attack(model, images, torch.arange(5) % 3, eps=eps)
    delta = adv.double() - images.double()
    assert adv.dtype == dtype
    assert not adv.requires_grad
    assert adv.min() >= 0
    assert adv.max() <= 1
    lengths = delta.flatten(1).abs().amax(1) if norm == "Linf" else delta.flatten(1).norm(dim=1)
    assert lengths.max().item() <= eps


@pytest.mark.parametrize(("schedule", "lengths"), [("constant", 4.0), ("linear", 1 + 0.75 + 0.5 + 0.25)])
def test_steps_have_the_lengths_of_the_schedule(schedule: Any, lengths: float) -> None:
    """On a linear model all steps have the same direction, so their lengths add up."""
    model, images = LinearModel(torch.ones(36).double()), torch.full((2, 1, 6, 6), 0.5).double()
    attack = PGD(steps=4, step_size=0.02, step_schedule=schedule, start=AtImage())
    adv = attack(model, images, torch.zeros(2, dtype=torch.long), eps=0.4)
    torch.testing.assert_close(images - adv, torch.full_like(images, 0.02 * lengths))


@pytest.mark.parametrize("attack", [PGD(), PGD(norm="L2", restarts=3, iterate="best")])
def test_eps_zero_returns_the_input(attack: PGD, images: Tensor, labels: Tensor) -> None:
    assert torch.equal(attack(small_network(), images, labels, eps=0), images)


def test_gain_on_a_linear_model_is_eps_times_the_dual_norm() -> None:
    weight = torch.randn(1, 6, 6)
    model, images, labels = LinearModel(weight), torch.full((3, 1, 6, 6), 0.5), torch.zeros(3, dtype=torch.long)
    before = model(images)[:, 0]
    duals: dict[NormName, Tensor] = {"Linf": weight.abs().sum(), "L2": weight.norm()}
    for norm, dual in duals.items():
        adv = PGD(norm=norm, steps=20, start=Uniform() if norm == "Linf" else AtImage())(model, images, labels, eps=0.1)
        torch.testing.assert_close(before - model(adv)[:, 0], (0.1 * dual).expand(3), rtol=1e-4, atol=1e-4)


def test_one_full_step_from_the_image_is_fgsm(images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN()
    inputs = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    expected = (images + 0.1 * grad.sign()).clamp(0, 1)
    torch.testing.assert_close(FGSM(model, images, labels, eps=0.1), expected, rtol=0, atol=1e-6)


def papers_loop(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int, noise: Tensor
) -> Tensor:
    """PGD as Shaeiri et al. 2020 describe it, with the mean loss and with gradients of the weights."""
    adv = (images + noise).clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        F.cross_entropy(model(adv), labels).backward()
        assert adv.grad is not None
        delta = (adv + step * adv.grad.sign() - images).clamp(-eps, eps)
        adv = (images + delta).clamp(0, 1)
    return adv.detach()


def test_agrees_with_the_papers_loop(images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN().double()
    images = images.double()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    expected = papers_loop(model, images, labels, 0.3, 0.01, 40, (2 * noise - 1) * 0.3)
    attack = PGD(steps=40, step_size=0.01)
    adv = attack(model, images, labels, eps=0.3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-9)


def test_result_does_not_depend_on_the_rest_of_the_batch(images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN().double()
    attack = PGD(steps=5, start=AtImage())
    images = images.double()
    whole = attack(model, images, labels, eps=0.2)
    alone = torch.cat([attack(model, images[i : i + 1], labels[i : i + 1], eps=0.2) for i in range(len(images))])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-9)


def loss_of(model: nn.Module, adv: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(adv), labels, reduction="none")


def test_the_best_iterate_is_at_least_as_strong_as_every_iterate(images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN()
    # With steps as long as the ball's radius, the last iterate is often not the worst.
    attack = PGD(steps=8, relative_step_size=2.0, start=AtImage(), iterate="best")
    best = attack(model, images, labels, eps=0.3)
    wrong = model(best).argmax(1) != labels
    for steps in range(9):
        iterate = replace(attack, steps=steps, iterate="last")(model, images, labels, eps=0.3)
        fooled = model(iterate).argmax(1) != labels
        assert (wrong | ~fooled).all()
        same = wrong == fooled
        assert (loss_of(model, best, labels) >= loss_of(model, iterate, labels) - 1e-6)[same].all()


def test_restarts_keep_each_images_worst_run(images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN()
    labels = model(images).argmax(1)
    one = PGD(steps=1, relative_step_size=0.1)
    generator = torch.Generator().manual_seed(5)
    runs = [one(model, images, labels, 0.2, generator) for _ in range(4)]
    fooled = torch.stack([model(run).argmax(1) != labels for run in runs])
    losses = torch.stack([loss_of(model, run, labels) for run in runs])
    # A fooled image counts more than any loss here.
    assert losses.max() < 100
    worst = (losses + 100 * fooled).argmax(0)
    assert len(set(worst.tolist())) > 1
    expected = torch.stack(runs)[worst, torch.arange(len(images))]
    four = replace(one, restarts=4)(model, images, labels, 0.2, torch.Generator().manual_seed(5))
    assert torch.equal(four, expected)


def test_a_fooling_point_is_worse_than_one_with_a_higher_loss() -> None:
    class TwoWays(nn.Module):
        """Correct with a high loss below 0.5, wrong with a low loss above it (three classes)."""

        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1).mean(1, keepdim=True)
            right = torch.cat([0.01 + 0 * x, 0 * x, 0 * x], 1)
            wrong = torch.cat([5 + 0 * x, 5.001 + 0 * x, -9 + 0 * x], 1)
            return torch.where(x < 0.5, right, wrong) + 0 * x

    images, labels = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    attack = PGD(steps=0, restarts=20)
    adv = attack(TwoWays(), images, labels, eps=0.3, generator=torch.Generator().manual_seed(0))
    assert TwoWays()(adv).argmax(1).item() == 1
    assert loss_of(TwoWays(), adv, labels) < loss_of(TwoWays(), torch.zeros_like(images), labels)


def test_pgd_attacks_any_function_of_images(images: Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.long)
    adv = FGSM(lambda x: torch.stack([-x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1), images, labels, eps=0.1)
    torch.testing.assert_close(adv, (images + 0.1).clamp(max=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", range(40))
def test_the_papers_rule_is_exact_on_the_papers_staircase(k: int) -> None:
    attack = PGD(steps="paper", step_size=0.01)
    assert attack.steps_at(0.01 * (k + 1)) == int(Fraction(5, 2) * (k + 1))


@given(st.integers(0, 255), st.sampled_from([1, 2, 4]))
def test_the_papers_rule_is_exact_in_255ths(n: int, step: int) -> None:
    assert PGD(steps="paper", step_size=f"{step}/255").steps_at(n / 255) == 5 * n // (2 * step)


def test_step_size_is_absolute_relative_or_derived_from_eps_and_steps() -> None:
    assert PGD(step_size="2/255").step_size_at(0.3) == 2 / 255
    assert PGD(relative_step_size=0.25).step_size_at(0.4) == pytest.approx(0.1)
    assert PGD(steps=10).step_size_at(0.4) == pytest.approx(0.1)
    assert PGD(steps="paper", relative_step_size="1/4").steps_at(0.3) == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "L1"}, "norm must be one of Linf, L2"),
        ({"steps": -1}, "steps must be a whole number from 0 or 'paper'"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"step_size": 0}, "step_size must be above 0, got 0"),
        ({"step_size": "-1/255"}, "step_size must be above 0"),
        ({"step_size": "x"}, "step_size must be a number"),
        ({"relative_step_size": 0}, "relative_step_size must be above 0"),
        ({"step_size": 0.1, "relative_step_size": 0.1}, "exclude each other"),
        ({"steps": "paper"}, "give step_size or relative_step_size"),
        ({"restarts": 0}, "restarts must be a whole number from 1"),
        ({"start": "Uniform"}, r"start must be Uniform\(\), AtImage\(\) or Level\(low, high\), got 'Uniform'"),
        ({"step_schedule": "cosine"}, "step_schedule must be one of constant, linear"),
        ({"iterate": "first"}, "iterate must be one of last, best"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"batchnorm": "off"}, "batchnorm must be one of"),
        ({"batchnorm": "train", "stop_when_fooled": True}, "stop_when_fooled needs batchnorm 'eval', got 'train'"),
    ],
)
def test_wrong_settings_raise(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x + 0.5, y), r"images must be in \[0, 1\]"),
        (lambda x, y: (x - 0.5, y), r"images must be in \[0, 1\]"),
        (lambda x, y: (x.masked_fill(x > 0.99, torch.nan), y), "without NaN"),
        (lambda x, y: (x, y + 1), r"labels must be in \[0, 10\)"),
        (lambda x, y: (x, y - 1), r"labels must be in \[0, 10\)"),
        (lambda x, y: (x, y[:3]), "labels must be one for each"),
    ],
)
def test_wrong_data_raises(images: Tensor, labels: Tensor, change: Any, message: str) -> None:
    images, labels = change(images, labels)
    with pytest.raises(ValueError, match=message):
        PGD(steps=1)(small_network(), images, labels, eps=0.1)


def test_coarse_dtypes_raise(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(TypeError, match="images must be float32 or float64"):
        PGD()(small_network(), images.half(), labels, eps=0.1)


def test_dlr_needs_three_classes() -> None:
    with pytest.raises(ValueError, match="at least 3 classes"):
        PGD(loss="dlr")(LinearModel(torch.ones(4)), torch.rand(2, 4), torch.zeros(2, dtype=torch.long), eps=0.1)


def test_attacks_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        PGD().steps = 3  # type: ignore[misc]


def test_name_has_norm_steps_restarts_and_eps() -> None:
    pgd = PGD(steps=200, step_size=0.005)
    assert NamedAttack(pgd, 0.3).name == "PGD-200 @ 0.3"
    assert NamedAttack(replace(pgd, norm="L2", restarts=10), "8/255").name == "PGD-L2-200x10 @ 8/255"
    assert NamedAttack(pgd, 0.3, name="mine").name == "mine"
    with pytest.raises(ValueError, match="eps must be"):
        NamedAttack(pgd, 1.5)


class Counting:
    """A model that records the number of images of each forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.sizes = model, list[int]()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        logits: Tensor = self.model(images)
        return logits


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (PGD(steps=7), 7),
        (PGD(steps=7, iterate="best"), 8),  # the last iterate needs a pass too
        (PGD(steps=7, restarts=3), 3 * 8),
        (PGD(steps=0), 0),
    ],
)
def test_a_step_is_one_forward_pass(images: Tensor, labels: Tensor, attack: PGD, passes: int) -> None:
    model = Counting(small_network().eval())
    attack(model, images, labels, eps=0.1)
    assert model.sizes == [12] * passes


class Products(TorchDispatchMode):
    """Counts convolutions, matrix products and their gradients, which take most of the time of an attack step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("convolution", "mm", "addmm", "bmm"):
            self.counts[name] += 1
        if name == "convolution_backward":
            self.counts.update(
                of for of, wanted in zip(("of images", "of weight", "of bias"), args[-1], strict=True) if wanted
            )
        return func(*args, **kwargs or {})


def test_a_step_computes_no_gradient_but_that_of_the_images() -> None:
    with torch.device("meta"):
        network, images, labels = MNISTCNN(), torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
    with Products() as products:
        PGD(steps=3)(network, images, labels, eps=0.1)
    # Two convolutions, two linear layers, and for each the gradient of its input.
    assert products.counts == {"convolution": 6, "of images": 6, "addmm": 6, "mm": 6}


def test_on_a_cpu_the_first_convolution_is_one_product_per_block_and_direction(images: Tensor, labels: Tensor) -> None:
    network = MNISTCNN()
    with Products() as products:
        PGD(steps=3)(network, images, labels, eps=0.1)
    # Forward: windows times shifted weights, and the shifting itself. Backward: one batched product.
    assert products.counts == {"convolution": 3, "of images": 3, "addmm": 6, "mm": 6 + 3 + 3, "bmm": 3}


@pytest.mark.parametrize("attack", [PGD(steps=3), PGD(steps=3, iterate="best", restarts=2), PGD(norm="L2", steps=3)])
def test_the_host_never_waits_for_the_device(attack: PGD) -> None:
    # A tensor on the meta device has no value: reading one is an error.
    with torch.device("meta"):
        network, images, labels = MNISTCNN(), torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
    assert attack(network, images, labels, eps=0.1).shape == images.shape


def fooled(model: nn.Module, adv: Tensor, labels: Tensor) -> Tensor:
    wrong: Tensor = model(adv).argmax(1) != labels
    return wrong


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize("iterate", ["last", "best"])
def test_stop_when_fooled_fools_the_same_images_as_the_best_iterate(
    images: Tensor, restarts: int, iterate: Any
) -> None:
    model, images = MNISTCNN().double(), images.double()
    labels = model(images).argmax(1)
    full = PGD(steps=20, step_size=0.001, restarts=restarts, iterate="best")
    stopping = replace(full, iterate=iterate, stop_when_fooled=True)
    results = []
    for attack in (full, stopping):
        adv = attack(model, images, labels, eps=0.005, generator=torch.Generator().manual_seed(0))
        assert (adv - images).abs().max().item() <= 0.005
        results.append(fooled(model, adv, labels))
    assert torch.equal(*results)
    assert 0 < int(results[0].sum()) < len(images)


def test_a_fooled_image_gets_no_further_step_or_restart(images: Tensor) -> None:
    network = MNISTCNN()
    labels = network(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 10  # fooled from the start
    model = Counting(network)
    start = images.clone()
    adv = PGD(steps=4, step_size=1e-6, start=AtImage(), restarts=2, stop_when_fooled=True)(
        model, images, labels, eps=1e-4
    )
    assert model.sizes == [12, 7, 7, 7, 7] + [7] * 5
    assert torch.equal(adv[:5], start[:5])
    model.sizes.clear()
    labels[5:] = (labels[5:] + 1) % 10
    PGD(steps=4, restarts=3, stop_when_fooled=True)(model, images, labels, eps=1e-4)
    assert model.sizes == [12]


def test_stop_when_fooled_does_not_change_the_result_for_other_images(images: Tensor) -> None:
    network = MNISTCNN()
    labels = network(images).argmax(1)
    labels[::2] = (labels[::2] + 1) % 10
    attack = PGD(steps=5, step_size=1e-4, start=AtImage())
    plain, stopping = (a(network, images, labels, eps=1e-3) for a in (attack, replace(attack, stop_when_fooled=True)))
    # Sums in a smaller batch round differently, so a gradient near zero may change its sign.
    assert ((plain - stopping)[1::2].abs() < 1e-6).double().mean() > 0.99


def test_iterates_have_the_memory_format_of_the_images() -> None:
    formats = set()

    def model(images: Tensor) -> Tensor:
        formats.add(images.is_contiguous(memory_format=torch.channels_last))
        return images.flatten(1)[:, :3]

    images = torch.rand(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    same = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for attack in (PGD(steps=2), PGD(steps=2, iterate="best", stop_when_fooled=True)):
        attack(model, images, torch.tensor([0, 1, 2] * 2), 0.1, torch.Generator().manual_seed(0))
        found = [
            attack(model, same.contiguous(memory_format=kept), torch.tensor([0, 1, 2] * 2), 0.1,
                   torch.Generator().manual_seed(0))
            for kept in (torch.contiguous_format, torch.channels_last)
        ]  # fmt: skip
        assert torch.equal(*found)
    formats.clear()
    for attack in (PGD(steps=2), PGD(steps=4, iterate="best", stop_when_fooled=True)):
        attack(model, images, torch.tensor([0, 1, 2] * 2), 0.1)
    assert formats == {True}
