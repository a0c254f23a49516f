"""Tests of every attack that searches for one fooling point: APGD, FAB and Square."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rampart.attacks import APGD, FAB, PGD, Attack, Ensemble, NormName, Square
from rampart.attacks.search import Search, ranked_class
from rampart.networks import MNISTCNN
from tests.conftest import LinearModel, small_network
from tests.rampart.attacks.test_pgd import NonFinite

SEARCHES = [
    APGD(steps=12),
    APGD(steps=12, norm="L2", loss="margin", restarts=2),
    APGD(steps=12, targets=2),
    FAB(steps=6, targets=2, restarts=2),
    FAB(steps=6, targets=2, restarts=2, norm="L2"),
    Square(queries=20),
    Square(queries=20, norm="L2"),
    Ensemble((PGD(steps=3), PGD(steps=3, loss="margin"))),
]


EPS: dict[NormName, float] = {"Linf": 0.3, "L2": 6}


def id_of(search: Search) -> str:
    return search.name


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
@settings(max_examples=15, deadline=None)
@given(
    share=st.one_of(st.floats(0, 1), st.sampled_from([1e-8, 8 / 255, 0.4])),
    double=st.booleans(),
    non_finite=st.booleans(),
)
def test_result_is_inside_ball_and_box(search: Search, share: float, double: bool, non_finite: bool) -> None:
    eps = share if search.norm == "Linf" else 20 * share
    images = torch.rand(5, 1, 28, 28, dtype=torch.double if double else torch.float)
    images[0] = images[0].round()
    model = NonFinite(4) if non_finite else small_network(5).to(images.dtype)
    adv = search(model, images, torch.arange(5) % 3, eps=eps)
    delta = (adv.double() - images.double()).flatten(1)
    assert adv.dtype == images.dtype
    assert not adv.requires_grad
    assert adv.min() >= 0
    assert adv.max() <= 1
    lengths = delta.abs().amax(1) if search.norm == "Linf" else delta.norm(dim=1)
    assert lengths.max().item() <= eps


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
def test_an_attack_in_inference_mode_does_not_change_the_model(search: Search) -> None:
    network, images = small_network(), torch.rand(6, 1, 28, 28)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    with torch.inference_mode():
        labels = network.eval()(images).argmax(1)
        network.train()
        network[4].eval()
        adv = search(network, images, labels, eps=EPS[search.norm])
    assert (adv != images).flatten(1).any(1).all()
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
def test_misclassified_clean_images_are_returned_unchanged(search: Search, images: Tensor) -> None:
    model = MNISTCNN()
    labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 10
    adv = search(model, images, labels, eps=EPS[search.norm])
    assert torch.equal(adv[:5], images[:5])
    assert not torch.equal(adv[5:], images[5:])


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
def test_eps_zero_and_no_images_return_the_input(search: Search, images: Tensor, labels: Tensor) -> None:
    assert torch.equal(search(MNISTCNN(), images, labels, eps=0), images)
    assert search(MNISTCNN(), images[:0], labels[:0], eps=0.1).shape == (0, 1, 28, 28)


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
def test_bad_input_raises(search: Search, images: Tensor, labels: Tensor) -> None:
    model = MNISTCNN()
    with pytest.raises(ValueError, match="eps must be"):
        search(model, images, labels, eps=-1)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        search(model, images * 255, labels, eps=0.1)
    with pytest.raises(TypeError, match="float32 or float64"):
        search(model, images.half(), labels, eps=0.1)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        search(model, images, labels + 5, eps=0.1)


@pytest.mark.parametrize("search", SEARCHES, ids=id_of)
def test_one_generator_state_gives_one_result(search: Search, images: Tensor) -> None:
    model = MNISTCNN()
    labels = model(images).argmax(1)
    one, same, other = (
        search(model, images, labels, EPS[search.norm] / 6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other) or isinstance(search, FAB)  # whose first run uses no random numbers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(norm="L7"), "norm must be one of Linf, L2"),  # type: ignore[arg-type]
        (lambda: APGD(loss="nonsense"), "loss must be one of"),  # type: ignore[arg-type]
        (lambda: APGD(steps=0), "steps must be a whole number from 1, got 0"),
        (lambda: APGD(targets=0), "targets must be a whole number from 1, got 0"),
        (lambda: APGD(targets=9, loss="margin"), "leave loss out, got 'margin'"),
        (lambda: FAB(restarts=0), "restarts must be a whole number from 1, got 0"),
        (lambda: Square(queries=0), "queries must be a whole number from 1, got 0"),
        (lambda: Square(area=1.5), "area must be above 0 and at most 1"),
    ],
)
def test_bad_settings_raise(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("search", [*SEARCHES, PGD(steps=3)], ids=lambda attack: attack.name)
def test_a_model_without_a_graph_can_be_attacked(search: Attack) -> None:
    """Thresholds on the input, the classic defence on MNIST, have no gradient. Square still fools the model."""
    network, images = MNISTCNN(), torch.rand(8, 1, 28, 28)

    def model(images: Tensor) -> Tensor:
        logits: Tensor = network((images > 0.5).float())
        return logits

    labels = model(images).argmax(1)
    adv = search(model, images, labels, eps=EPS[search.norm])
    assert bool((model(adv).argmax(1) != labels).any()) or not isinstance(search, Square)


def test_targets_beyond_the_wrong_classes_do_not_change_the_result(images: Tensor) -> None:
    """A run without a target class must not replace the worst points by the clean images."""
    network = small_network(5).eval()
    labels = network(images).argmax(1)
    adv = APGD(targets=9, steps=3)(network, images, labels, eps=1e-4)
    assert (adv != images).flatten(1).any(1).all()


def test_wrong_classes_are_ranked_by_their_logits() -> None:
    logits = torch.tensor([[4.0, 1, 3, 2], [4, 1, 3, 2]])
    labels = torch.tensor([0, 2])
    assert [ranked_class(logits, labels, rank).tolist() for rank in range(3)] == [[2, 0], [3, 3], [1, 1]]
    assert ranked_class(torch.tensor([[5.0, -torch.inf]]), torch.tensor([0]), 0).tolist() == [1]


@pytest.mark.parametrize("search", [APGD(targets=9, steps=3), FAB(targets=9, steps=3)], ids=id_of)
def test_more_targets_than_wrong_classes_are_no_error(search: Search) -> None:
    network = small_network(5)
    images = torch.rand(4, 1, 28, 28)
    network.eval()
    adv = search(network, images, network(images).argmax(1), eps=0.01)
    assert adv.shape == images.shape


def linear_example(norm: NormName, eps: float) -> tuple[LinearModel, Tensor, Tensor]:
    """Return a linear model, an image whose right class leads by ``eps`` times the dual norm, and its label."""
    weight = torch.randn(1, 6, 6).double()
    model = LinearModel(weight)
    dual = weight.abs().sum() if norm == "Linf" else weight.norm()
    level = (eps * dual - (weight * 0.5).sum()) / weight.abs().sum()
    images = 0.5 + (level * weight.sign())[None]
    return model, images, torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize(
    "search", [APGD(steps=50), APGD(steps=50, norm="L2"), FAB(targets=1), FAB(targets=1, norm="L2")], ids=id_of
)
def test_the_smallest_fooling_eps_of_a_linear_model_is_found(search: Search) -> None:
    """A lead of ``eps`` times the dual norm is lost at that eps and at none below."""
    model, images, labels = linear_example(search.norm, 0.1)
    assert images.min() > 0.15
    assert images.max() < 0.85
    for eps, fooled in ((0.097, False), (0.108, True)):
        adv = search(model, images, labels, eps=eps)
        assert bool((model(adv).argmax(1) != labels).all()) == fooled
