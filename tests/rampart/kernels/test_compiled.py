"""Compiled execution, with a backend of torch that needs no compiler."""

import gc
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.attacks.logits import compute_logits
from rampart.kernels import Execution, compiled
from rampart.networks import GatedMNISTCNN, plain_form

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
COMPILE = Execution(compile=True)


class Net(nn.Module):
    """A small network with layers that differ by mode."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 3)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(images)).relu() * self.factor
        logits: Tensor = self.linear(features.flatten(1))
        return logits


class Branching(Net):
    """A network that torch can't compile as a whole."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if images.sum() > 0 else super().forward(-images)


@pytest.fixture(autouse=True)
def _backend(monkeypatch: Any) -> Any:
    monkeypatch.setattr(compiled, "_BACKEND", "eager")
    compiled._find_kind.cache_clear()
    torch._dynamo.reset()
    yield
    compiled._find_kind.cache_clear()


def count_compilations(network: Any = Net) -> int:
    kinds = [compiled._find_kind(network, training, grad) for training in (False, True) for grad in (False, True)]
    return sum(kind._compilations for kind in kinds)


def attack_and_train(network: nn.Module, images: Tensor = IMAGES) -> list[Tensor]:
    """Return the results of an attack, a prediction and a training step."""
    network.zero_grad()
    labels = LABELS[: len(images)]
    adv = PGD(steps=2)(network.train(), images, labels, 0.1, generator=torch.Generator().manual_seed(0))
    logits = compute_logits(network, adv)
    F.cross_entropy(logits, labels).backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    with torch.no_grad():
        predicted = compute_logits(network.eval(), images)
    return [adv, logits.detach(), predicted, *gradients, *network.buffers()]


def test_results_are_equal_and_the_network_is_unchanged(monkeypatch: Any) -> None:
    monkeypatch.setattr(compiled, "_BACKEND", "aot_eager")
    network, same = Net(), Net()
    same.load_state_dict(network.state_dict())
    names, before = list(network.state_dict()), pickle.dumps(network)
    expected = attack_and_train(same)
    with COMPILE.training("cpu"):
        results = attack_and_train(network)
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other)
    assert count_compilations() > 0
    assert list(network.state_dict()) == names
    assert [type(module) for module in network.modules()] == [type(module) for module in same.modules()]
    assert network.__dict__.keys() == pickle.loads(before).__dict__.keys()  # noqa: S301 - made above
    reference = weakref.ref(network)
    del network, results
    gc.collect()
    assert reference() is None


def test_batch_sizes_and_copies_compile_a_bounded_number_of_times() -> None:
    network = Net()
    with COMPILE.training("cpu"):
        attack_and_train(network)
        first = count_compilations()
        attack_and_train(Net())
        assert count_compilations() == first  # Weights are inputs of the code.
        for size in (5, 4, 3, 2):
            attack_and_train(network, IMAGES[:size])
        attack_and_train(network, IMAGES[:5])
    assert first <= 5
    assert count_compilations() <= 2 * first


def test_forms_of_a_network_that_are_built_anew_share_their_code() -> None:
    network, images = GatedMNISTCNN().eval(), torch.rand(2, 1, 28, 28)
    with torch.no_grad(), COMPILE.evaluation("cpu"):
        logits = [compute_logits(plain_form(network), images) for _ in range(3)]
        assert count_compilations(type(plain_form(network))) == 1
    torch.testing.assert_close(logits[2], plain_form(network)(images))


def test_after_the_last_compilation_others_are_executed_as_usual(recwarn: Any) -> None:
    networks = [Net(factor).eval() for factor in range(compiled.LIMIT + 3)]
    with torch.no_grad(), COMPILE.evaluation("cpu"):
        for network in [*networks, *networks]:
            torch.testing.assert_close(compute_logits(network, IMAGES), network(IMAGES))
    (line,) = [str(warning.message) for warning in recwarn if "execution.compile" in str(warning.message)]
    assert line.startswith("execution.compile: Net was compiled 8 times")
    assert count_compilations() == compiled.LIMIT


def test_a_network_that_cannot_be_compiled_is_executed_as_usual() -> None:
    network = Branching().eval()
    with COMPILE.evaluation("cpu"):
        with pytest.warns(UserWarning, match="execution.compile: Branching is executed as usual") as caught:
            logits = compute_logits(network, IMAGES)
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(compute_logits(network, IMAGES), logits)
    assert torch.equal(network(IMAGES), logits)


def test_without_a_compiler_the_network_is_executed_as_usual(monkeypatch: Any) -> None:
    monkeypatch.setattr(compiled, "_BACKEND", "no such backend")
    with COMPILE.evaluation("cpu"), pytest.warns(UserWarning, match="executed as usual, since torch.compile failed"):
        compute_logits(Net().eval(), IMAGES)


def test_an_error_of_the_network_is_raised_and_leaves_it_compiled() -> None:
    network = Net().eval()
    with COMPILE.evaluation("cpu"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(ValueError, match="Net failed on images of shape"):
                compute_logits(network, IMAGES[:, :, :5])
        compute_logits(network, IMAGES)
    assert count_compilations() > 0


def test_networks_that_are_compiled_already_and_functions_are_called_as_usual() -> None:
    network = Net().eval()
    given: Any = torch.compile(network, backend="eager")
    with COMPILE.evaluation("cpu"):
        for model in (given, lambda images: network(images)):
            torch.testing.assert_close(compute_logits(model, IMAGES), network(IMAGES))
    assert count_compilations() == 0
