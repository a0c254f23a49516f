"""Recordings notice what changes in a network and a loss, and what fails while they are made leaves nothing behind."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.attacks.losses import describe_loss
from rampart.kernels import DerivedWeights, Execution, derive_weights, frozen_weights, recording
from tests.rampart.kernels.tape import Tape

ATTACK = PGD(steps=20, loss="margin")
BATCH = torch.rand(50, 1, 2, 2), torch.arange(50) % 3


def attack(network: nn.Module, attack: PGD = ATTACK, capture: bool | None = None) -> Tensor:
    with Execution(capture=capture).training("cpu"):
        return attack(network, *BATCH, 0.2, generator=torch.Generator().manual_seed(0))


def assert_replays_equal_calls(network: nn.Module) -> None:
    assert torch.equal(attack(network), attack(network, capture=False))
    assert len(recording._RECORDINGS[network]._recordings) == 1


class Scaled(nn.Module):
    """A network with parts that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.slope = nn.Linear(4, 3), nn.LeakyReLU(0.5)
        self.settings, self.number = SimpleNamespace(power=2), torch.tensor(1.0)
        self.change: Any = torch.sin

    def forward(self, images: Tensor) -> Tensor:
        x = self.slope(self.linear(images.flatten(1)))
        logits: Tensor = self.number * self.change(x) ** self.settings.power
        return logits


def test_changed_numbers_of_layers_and_of_attributes_are_seen(tapes: list[Tape]) -> None:
    torch.manual_seed(0)
    network = Scaled()
    for change in (
        lambda: setattr(network.slope, "negative_slope", -3.0),
        lambda: setattr(network.settings, "power", 1),
        lambda: network.number.fill_(-1.0),
        lambda: setattr(network, "change", lambda x: x.cos()),
    ):
        assert_replays_equal_calls(network)
        before = attack(network)
        change()
        assert_replays_equal_calls(network)
        assert not torch.equal(attack(network), before)
    assert tapes


def test_an_object_at_the_address_of_another_is_seen(tapes: list[Tape]) -> None:
    network = Scaled()
    for factor in (1.0, -1.0, 1.0):
        network.change = None  # frees the function before
        network.change = lambda x, factor=factor: factor * x
        assert_replays_equal_calls(network)
    assert tapes


def test_a_hook_ends_replays_only_while_it_is_there(tapes: list[Tape]) -> None:
    network, seen = Scaled(), []
    attack(network)
    hook = network.linear.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="without CUDA graphs.*Linear has hooks"):
        attack(network)
    attack(network)  # without a second warning
    assert len(seen) == 40
    hook.remove()
    attack(network)
    assert len(seen) == 40
    assert len(tapes) == 2, "the recording is kept"


class Large(nn.Module):
    """A network that needs too much memory for more than three images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def test_smaller_batches_are_recorded_after_memory_was_full(tapes: list[Tape]) -> None:
    network, (images, labels) = Large(), BATCH
    with pytest.warns(UserWarning, match="too little memory to record"), pytest.raises(torch.OutOfMemoryError):
        ATTACK(network, images, labels, 0.2)
    with pytest.raises(torch.OutOfMemoryError):  # without a second warning
        ATTACK(network, images, labels, 0.2)
    ATTACK(network, images[:3], labels[:3], 0.2)
    assert len(recording._RECORDINGS[network]._recordings) == 1
    assert tapes


def test_many_different_shapes_end_recording(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_RECORDINGS", 2)
    monkeypatch.setattr(recording, "MOST_DROPPED", 3)
    network = Scaled()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for size in range(1, 12):
            ATTACK(network, torch.rand(size, 1, 2, 2), torch.arange(size) % 3, 0.2)
    (warning,) = given
    assert "too many different shapes" in str(warning.message)
    assert not recording._RECORDINGS[network]._recordings


def test_nothing_is_recorded_for_no_steps_under_anomaly_detection_or_inside_another_recording(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Scaled()
    for _ in range(3):
        attack(network, PGD(steps=0))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        attack(network)
    monkeypatch.setattr(recording.RECORDERS["cpu"], "can_record", lambda _: False)
    attack(network)
    assert not tapes


def test_random_numbers_are_not_used_up_by_recording(tapes: list[Tape]) -> None:
    class Random(Scaled):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.dropout(images, 0.5, training=True))

    states = []
    for capture in (False, None):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The tape refuses random operations.
            attack(Random(), capture=capture)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert tapes


def test_weights_that_are_replaced_in_an_attack_derive_anew() -> None:
    layer, derived = nn.Linear(2, 2), DerivedWeights()

    def double(weight: Tensor) -> tuple[Tensor]:
        return (2 * weight,)

    with torch.no_grad(), frozen_weights(derived):
        (kept,) = derive_weights(layer, [layer.weight], double)
        other = layer.weight + 1
        assert torch.equal(derive_weights(layer, [other], double)[0], 2 * other)
        assert derive_weights(layer, [layer.weight], double)[0] is kept
        layer.weight.add_(1)
        derived.refresh()
    assert torch.equal(kept, 2 * layer.weight)


FACTOR = 1.0


def global_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return FACTOR * F.cross_entropy(logits, labels, reduction="none")


def make_loss() -> Any:
    def loss(logits: Tensor, labels: Tensor, scale: float = 2.0) -> Tensor:
        return scale * F.cross_entropy(logits, labels, reduction="none")

    return loss


def test_losses_are_described_by_what_they_compute(tapes: list[Tape]) -> None:
    assert describe_loss(global_loss) is None
    assert describe_loss(make_loss()) == describe_loss(make_loss()) is not None
    network = Scaled()
    for _ in range(3):
        attack(network, PGD(steps=20, loss=make_loss()))
    assert len(recording._RECORDINGS[network]._recordings) == 1
    assert len(tapes) == 2
