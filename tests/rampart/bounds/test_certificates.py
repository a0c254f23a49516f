from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.bounds import NoBoundError, certificates, certified_mask, certified_radii
from rampart.bounds.certificates import METHODS
from rampart.evaluation import robust_mask
from rampart.evaluation.run_attack import _inside as is_inside
from rampart.networks import MNISTCNN, GatedMNISTCNN
from tests.rampart.networks.references import NARROW

NETWORKS: list[Callable[[], Any]] = [MNISTCNN, GatedMNISTCNN, *NARROW.values()]


class Level(nn.Module):
    """Predicts class 1 for a mean pixel above 0.5: an image's distance from 0.5 is its exact radius."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.eval()
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-gain / 4], [gain / 4]]))
            self.linear.bias.copy_(torch.tensor([gain / 2, -gain / 2]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def case(levels: list[float]) -> tuple[nn.Module, Tensor, Tensor]:
    images = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return Level(), images, torch.ones(len(levels), dtype=torch.int64)


def test_images_are_certified_up_to_their_exact_radius() -> None:
    network, images, labels = case([0.4, 0.55, 0.65, 0.75])
    assert certified_mask(network, images, labels, 0.1).tolist() == [False, False, True, True]
    assert certified_mask(network, images, labels, 0.0).tolist() == [False, True, True, True]
    radii = certified_radii(network, images, labels, tolerance=1e-3)
    torch.testing.assert_close(radii, torch.tensor([0.0, 0.05, 0.15, 0.25]).double(), atol=1.3e-3, rtol=0)
    assert (radii <= (images.flatten(1).mean(1) - 0.5).clamp(min=0)).all()


def test_each_image_may_have_its_own_eps() -> None:
    network, images, labels = case([0.6, 0.6, 0.6])
    assert certified_mask(network, images, labels, torch.tensor([0.05, 0.15, 0.09])).tolist() == [True, False, True]


def test_only_active_images_are_certified() -> None:
    network, images, labels = case([0.8, 0.8])
    active = torch.tensor([True, False])
    assert certified_mask(network, images, labels, 0.1, active=active).tolist() == [True, False]
    assert certified_radii(network, images, labels, active=active)[1] == 0


def test_radii_lie_between_the_known_ends() -> None:
    network, images, labels = case([0.7, 0.7, 0.9])
    radii = certified_radii(network, images, labels, torch.tensor([0.3, 0.15, 0.2]), min_eps=0.1, tolerance=1e-3)
    torch.testing.assert_close(radii, torch.tensor([0.2, 0.15, 0.2]).double(), atol=2e-3, rtol=0)
    # 0.7 is not certified at 0.25: nothing is found above what was known.
    assert certified_radii(network, images[:1], labels[:1], 0.4, min_eps=0.25).tolist() == [0.25]


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_do_not_change_the_result(chunk: int) -> None:
    torch.manual_seed(0)
    network = MNISTCNN().eval()
    images = torch.rand(5, 1, 28, 28)
    labels = network(images).argmax(1)
    radii = certified_radii(network, images, labels, 0.01, tolerance=1e-6, methods=["IBP"])
    assert radii.unique().numel() > 1
    again = certified_radii(network, images, labels, 0.01, tolerance=1e-6, methods=["IBP"], chunk=chunk)
    torch.testing.assert_close(again, radii)


@pytest.mark.parametrize(("gap", "certified", "passes"), [(2e-4, True, 1), (5e-5, True, 2), (2e-6, False, 2)])
def test_images_near_zero_are_bounded_again_in_float64(
    monkeypatch: pytest.MonkeyPatch, gap: float, certified: bool, passes: int
) -> None:
    dtypes = []

    def bound(_network: Any, images: Tensor, _labels: Tensor, _eps: Tensor) -> Any:
        dtypes.append(images.dtype)
        return certificates._Bound(torch.tensor([[-10 * gap, 0.0]], dtype=images.dtype), torch.tensor([10.0]))

    monkeypatch.setitem(certificates.BOUNDS, "IBP", bound)
    network, images, labels = case([0.7])
    assert certified_mask(network, images, labels, 0.1, methods=["IBP"]).tolist() == [certified]
    assert dtypes == [torch.float32, torch.float64][:passes]


def test_the_bounded_ball_holds_every_image_that_an_evaluation_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = []

    def bound(_network: Any, _images: Tensor, _labels: Tensor, eps: Tensor) -> Any:
        bounded.append(eps)
        return certificates._Bound(torch.tensor([[-1.0, 0.0]]), torch.tensor([1.0]))

    monkeypatch.setitem(certificates.BOUNDS, "IBP", bound)
    network, images, labels = case([0.0])  # so that adding the radius does not round
    certified_mask(network, images, labels, 0.1, methods=["IBP"])
    (radius,) = bounded
    images = images.double()
    assert is_inside(images + radius, images, 0.1, "Linf").all()
    assert not is_inside(images + 1.00001 * radius, images, 0.1, "Linf").any()


@pytest.mark.parametrize("make", NETWORKS)
def test_float64_copies_give_the_same_bounds_and_leave_the_network_unchanged(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    images = torch.rand(2, *network.image_shape)
    labels, eps = torch.tensor([3, 0]), torch.tensor([0.01, 0.02])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for bound in certificates.BOUNDS.values():
        with torch.no_grad():
            single = bound(network, images, labels, eps)
            double = bound(certificates._Float64(network), images.double(), labels, eps.double())
        assert double.worst.dtype == torch.float64
        rounding = (single.worst - double.worst).abs().amax(1) / double.scale
        assert (rounding < certificates.MARGIN / 10).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@settings(max_examples=6, deadline=None)
@given(make=st.sampled_from(NETWORKS), seed=st.integers(0, 2**32 - 1))
def test_certified_images_are_robust_and_certified_at_every_smaller_eps(make: Callable[[], Any], seed: int) -> None:
    torch.manual_seed(seed)
    network = make().eval()
    images = torch.rand(4, *network.image_shape)
    labels = network(images).argmax(1)
    methods: Any = METHODS if make in (MNISTCNN, GatedMNISTCNN) else ["IBP"]
    radii = certified_radii(network, images, labels, 0.01, tolerance=1e-5, methods=methods)
    found = radii > 0
    assert torch.equal(certified_mask(network, images, labels, radii, active=found, methods=methods), found)
    if len(methods) == 1:  # CROWN-IBP's bounds alone do not always shrink with the box.
        assert torch.equal(certified_mask(network, images, labels, radii / 2, active=found, methods=methods), found)
    for index in found.nonzero().squeeze(1).tolist():
        row = slice(index, index + 1)
        assert robust_mask(network, images[row], labels[row], PGD(steps=5), radii[index].item()).all()


def test_crown_certifies_images_that_intervals_leave_open() -> None:
    torch.manual_seed(0)
    network = MNISTCNN().eval()
    images = torch.rand(3, 1, 28, 28)
    labels = network(images).argmax(1)
    intervals = certified_radii(network, images, labels, 0.01, tolerance=1e-5, methods=["IBP"])
    both = certified_radii(network, images, labels, 0.01, tolerance=1e-5, methods=["IBP", "CROWN-IBP"], chunk=20)
    assert (both > 1.2 * intervals).all()
    for image, label, radius in zip(images.split(1), labels.split(1), both.tolist(), strict=True):
        assert robust_mask(network, image, label, PGD(steps=5), radius).all()
    assert certified_mask(network, images, labels, intervals, methods=["CROWN-IBP"]).all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_bounds_that_are_not_finite_certify_nothing(broken: float) -> None:
    network, images, labels = case([0.9])
    with torch.no_grad():
        next(network.parameters())[0] = broken
    assert certified_mask(network, images, labels, 0.01).tolist() == [False]


def test_a_network_in_train_mode_is_refused() -> None:
    network, images, labels = case([0.9])
    network.train()
    with pytest.raises(ValueError, match="certificates are for networks in eval mode, got Level in train mode"):
        certified_mask(network, images, labels, 0.01)


def test_an_operation_without_a_rule_is_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    with pytest.raises(NoBoundError, match=r"no interval bound for layer_norm.*in layer 1, LayerNorm"):
        certified_mask(network, torch.rand(1, 1, 2, 2), torch.tensor([0]), 0.1)


def test_a_tolerance_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="tolerance must be above 0, got 0"):
        certified_radii(*case([0.9]), tolerance=0.0)


class Computes(nn.Module):
    """Applies a function before a linear layer, with large margins between the classes."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.linear = function, Level(100.0)
        self.eval()

    def forward(self, images: Any) -> Any:
        return self.linear(self.function(images))


def by_autocast(x: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x.flatten(1), torch.eye(4)).float()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("half", lambda x: x.half().float()),
        ("to that rounds to bfloat16", lambda x: x.to(torch.bfloat16).float()),
        ("linear that rounds to bfloat16", by_autocast),
        ("to that rounds to bool", lambda x: (x - 0.5).to(torch.bool).float()),  # True, False, True
        ("view that rounds to int32", lambda x: x.view(torch.int32).float()),
    ],
)
def test_rounding_to_less_than_the_margin_allows_for_has_no_bound(name: str, function: Callable[[Any], Any]) -> None:
    _, images, labels = case([0.6])
    with pytest.raises(NoBoundError, match=f"no interval bound for {name}"):
        certified_mask(Computes(function), images, labels, 0.0)


def test_a_network_that_rounds_more_than_others_is_certified_by_a_larger_margin() -> None:
    _, images, labels = case([0.501, 0.501, 0.7])
    assert certified_mask(Computes(lambda x: x), images, labels, 0.0).all()
    # The network adds up to 2^-7 to pixels in float32, and nothing in float64.
    coarse = Computes(lambda x: x + 2.0**17 - 2.0**17)
    assert certified_mask(coarse, images, labels, 0.0).tolist() == [False, False, True]


def test_a_network_that_mixes_images_is_not_certified() -> None:
    _, images, labels = case([0.8, 0.9, 0.3, 0.7])
    mixing = Computes(lambda x: x - x.mean(0) + 0.6)
    assert not certified_mask(mixing, images, labels, 0.0).any()


@pytest.mark.parametrize("function", [lambda x: x.float(), lambda x: F.linear(x.flatten(1), torch.eye(4))])
def test_borderline_images_are_open_if_the_network_cannot_compute_in_float64(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Any], Any]
) -> None:
    _, images, labels = case([0.6, 0.9])
    assert certified_mask(Computes(function), images, labels, 0.0).all()
    monkeypatch.setattr(certificates, "MARGIN", 10.0)
    assert not certified_mask(Computes(function), images, labels, 0.0).any()


def test_a_negative_eps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps must be at least 0, got -0\.1"):
        certified_mask(*case([0.8, 0.8]), torch.tensor([0.1, -0.1]))
