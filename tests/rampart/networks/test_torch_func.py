"""Networks work with torch's function transforms and tracers, with the derivatives of an ordinary forward pass."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import hubconf
from rampart.networks import CNN5, MNISTCNN, GatedMNISTCNN, ResNet18
from rampart.networks.cifar_network import CHANNELS_LAST_FROM, CIFARNetwork
from tests.rampart.networks.references import EACH_BLOCK, NARROW

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": MNISTCNN,
    "gates": GatedMNISTCNN,
    "hub": lambda: hubconf.mnist_cnn("fast"),
    "CNN5": lambda: CNN5(width=8, hidden=16, levels=((0.2, 0.8),)),
    **{kind: NARROW[kind] for kind in EACH_BLOCK},
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param]().double().eval()


@pytest.fixture
def pictures(network: Any) -> Tensor:
    return torch.rand(1 if isinstance(network, CIFARNetwork) else 2, *network.image_shape, dtype=torch.float64)


def jacobian_by_hand(network: Any, pictures: Tensor) -> Tensor:
    """Return the Jacobian by one backward pass per class, ``(classes, N, C, H, W)``; images are independent."""
    leaf = pictures.clone().requires_grad_()
    logits = network(leaf)
    return torch.stack([torch.autograd.grad(logits[:, c].sum(), leaf, retain_graph=True)[0] for c in range(3)])


def test_derivatives_by_the_images_equal_those_of_the_backward_pass(network: Any, pictures: Tensor) -> None:
    def logits_sum(images: Tensor) -> Tensor:
        result: Tensor = network(images).sum(0)[:3]
        return result

    expected = jacobian_by_hand(network, pictures)
    direction = torch.rand_like(pictures)
    along = (expected * direction).sum((1, 2, 3, 4))
    torch.testing.assert_close(jacrev(logits_sum)(pictures), expected)
    torch.testing.assert_close(torch.autograd.functional.jacobian(logits_sum, pictures, vectorize=True), expected)
    torch.testing.assert_close(jvp(logits_sum, (pictures,), (direction,))[1], along)
    torch.testing.assert_close(jacfwd(lambda s: logits_sum(pictures + s * direction))(torch.zeros(()).double()), along)
    (pulled,) = vjp(logits_sum, pictures)[1](torch.tensor([1.0, 0, -1]).double())
    torch.testing.assert_close(pulled, expected[0] - expected[2])
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(logits_sum(forward_ad.make_dual(pictures, direction)))
        torch.testing.assert_close(dual.tangent, along)


def test_vmap_computes_each_image_alone(network: Any, pictures: Tensor) -> None:
    expected = network(pictures)
    torch.testing.assert_close(vmap(lambda image: network(image[None])[0])(pictures), expected)


def test_vmap_works_on_batches_that_are_computed_in_channels_last() -> None:
    network, images = ResNet18(width=8).eval(), torch.rand(2, 3, 32, 32)
    many = images[:1].expand(CHANNELS_LAST_FROM, 3, 32, 32)
    torch.testing.assert_close(vmap(network)(many[None])[0, :1], network(images)[:1], rtol=1e-3, atol=1e-3)


def test_vmap_gives_per_image_gradients_of_the_weights(network: Any, pictures: Tensor) -> None:
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        result: Tensor = functional_call(network, weights, (image[None],)).logsumexp(1).sum()
        return result

    each = vmap(grad(loss), (None, 0))(weights, pictures)
    summed = torch.autograd.grad(network(pictures).logsumexp(1).sum(), [network.get_parameter(n) for n in trained])
    for name, expected in zip(trained, summed, strict=True):
        torch.testing.assert_close(each[name].sum(0), expected)


def test_batched_backward_passes_equal_separate_ones(network: Any, pictures: Tensor) -> None:
    leaf = pictures.clone().requires_grad_()
    logits = network(leaf)
    weights = [leaf, *(weight for weight in network.parameters() if weight.requires_grad)]
    vectors = torch.rand(2, *logits.shape).double()
    batched = torch.autograd.grad(logits, weights, vectors, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda v: torch.autograd.grad(logits, weights, v, retain_graph=True))(vectors)
    for number, vector in enumerate(vectors):
        separate = torch.autograd.grad(logits, weights, vector, retain_graph=True)
        for one, other, expected in zip(batched, mapped, separate, strict=True):
            torch.testing.assert_close(one[number], expected)
            torch.testing.assert_close(other[number], expected)


def test_second_derivatives_agree_in_both_modes(network: Any, pictures: Tensor) -> None:
    direction = torch.rand_like(pictures)

    def along(step: Tensor) -> Tensor:
        result: Tensor = network(pictures + step * direction).pow(2).sum()
        return result

    zero = torch.zeros(()).double()
    expected = torch.autograd.functional.hessian(along, zero)
    torch.testing.assert_close(hessian(along)(zero), expected)
    torch.testing.assert_close(jacfwd(grad(along))(zero), expected)
    torch.testing.assert_close(torch.autograd.functional.hessian(along, zero, vectorize=True), expected)


def test_stacked_copies_run_as_one_ensemble(network: Any, pictures: Tensor) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    state = stack_module_state([network, other])
    stacked = vmap(lambda weights, buffers: functional_call(network, (weights, buffers), (pictures,)))(*state)
    torch.testing.assert_close(stacked, torch.stack([network(pictures), other(pictures)]))


def test_traced_networks_work_on_other_images(network: Any, pictures: Tensor) -> None:
    others = torch.rand_like(pictures)
    expected = network(others)
    torch.testing.assert_close(make_fx(network)(pictures)(others), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(others), expected)
    torch.testing.assert_close(torch.jit.trace(network, pictures)(others), expected)
    with FlopCounterMode(display=False) as counter:
        network(pictures)
    assert counter.get_total_flops() > 1e6


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradient(network: Any, pictures: Tensor, reentrant: bool) -> None:
    expected = jacobian_by_hand(network, pictures)[0]
    leaf = pictures.clone().requires_grad_()
    checkpoint(network, leaf, use_reentrant=reentrant)[:, 0].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("kind", ["plain", "gates", "CNN5", "Bottlenecks", "WRN-10-1"])
def test_compiled_and_exported_networks_compute_the_same(kind: str) -> None:
    network: Any = NETWORKS[kind]().eval()
    images = torch.rand(2, *network.image_shape)
    torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(images), network(images))
    torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), network(images))
