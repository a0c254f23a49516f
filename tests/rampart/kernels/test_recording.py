"""Recorded steps equal called ones, with a tape of operations in place of a CUDA graph."""

import gc
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD, AtImage, rows
from rampart.kernels import Execution, recording
from rampart.kernels.state import largest_difference
from rampart.networks import MNISTCNN, GatedMNISTCNN
from rampart.objectives import TRADES, AdversarialTraining
from tests.rampart.kernels.tape import Tape
from tests.rampart.networks.references import EACH_BLOCK, NARROW

Batch = tuple[Tensor, Tensor]


def make_batch(shape: tuple[int, ...], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)


def run_attack(attack: PGD, network: nn.Module, batch: Batch, eps: float, seed: int = 0, **options: Any) -> Tensor:
    return attack(network, *batch, eps, generator=torch.Generator().manual_seed(seed), **options)


def call_steps(attack: PGD, network: nn.Module, batch: Batch, eps: float, seed: int = 0, **options: Any) -> Tensor:
    """Attack without recordings."""
    with Execution(capture=False).training("cpu"):
        return run_attack(attack, network, batch, eps, seed, **options)


def count_recordings(network: nn.Module) -> int:
    return len(recording._RECORDINGS[network]._recordings)


ATTACKS = {
    "last": PGD(steps=16),
    "linear": PGD(steps=16, step_schedule="linear"),
    "best": PGD(steps=16, iterate="best"),
    "restarts": PGD(steps=8, restarts=3),
    "best of restarts": PGD(steps=8, restarts=3, iterate="best"),
    "stop": PGD(steps=16, stop_when_fooled=True),
    "stop at best": PGD(steps=8, restarts=3, iterate="best", stop_when_fooled=True),
    "L2": PGD(norm="L2", steps=16, iterate="best"),
    "margin from the image": PGD(steps=16, loss="margin", start=AtImage()),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("kind", [MNISTCNN, GatedMNISTCNN])
def test_replays_give_what_calls_give(attack: PGD, kind: Any, tapes: list[Tape]) -> None:
    torch.manual_seed(0)
    network = kind().eval()
    eps = 3.0 if attack.norm == "L2" else 0.2
    for seed in range(2):
        batch = make_batch((6, 1, 28, 28), seed)
        expected = call_steps(attack, network, batch, eps, seed)
        assert torch.equal(run_attack(attack, network, batch, eps, seed), expected)
    assert tapes
    assert count_recordings(network) >= 1


def test_active_rows_are_attacked_alone(tapes: list[Tape]) -> None:
    network, batch = MNISTCNN().eval(), make_batch((6, 1, 28, 28))
    active = torch.tensor([True, False, True, True, False, True])
    for attack in (ATTACKS["last"], ATTACKS["stop at best"]):
        expected = call_steps(attack, network, batch, 0.2, active=active)
        assert torch.equal(run_attack(attack, network, batch, 0.2, active=active), expected)
    assert tapes


@pytest.mark.parametrize("kind", EACH_BLOCK)
def test_folded_weights_follow_the_network(kind: str, tapes: list[Tape]) -> None:
    network, batch = NARROW[kind]().eval(), make_batch((4, 3, 32, 32))
    attack = PGD(steps=2)
    for _ in range(4):
        expected = call_steps(attack, network, batch, 8 / 255)
        assert torch.equal(run_attack(attack, network, batch, 8 / 255), expected)
        with torch.no_grad():  # a training step
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1.01)
    assert count_recordings(network) == 1
    assert len(recording._RECORDINGS[network]._derived) > 0


def test_a_ramp_of_eps_needs_one_recording(tapes: list[Tape]) -> None:
    network, batch = MNISTCNN().eval(), make_batch((4, 1, 28, 28))
    for number in range(6):
        run_attack(PGD(steps=3 + number, step_size=0.01 + number / 100), network, batch, 0.05 * (number + 1), number)
    assert count_recordings(network) == 1
    run_attack(PGD(steps=3), network, make_batch((3, 1, 28, 28)), 0.3)
    assert count_recordings(network) == 1, "a shape that is needed once is not recorded"
    run_attack(PGD(steps=3), network, make_batch((3, 1, 28, 28)), 0.3)
    assert count_recordings(network) == 2
    assert tapes


@pytest.mark.parametrize("batchnorm", ["eval", "train", "train_and_update"])
def test_batchnorm_in_the_attack_is_that_of_calls(batchnorm: Any, tapes: list[Tape]) -> None:
    networks = []
    for capture in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
        generator, batch = torch.Generator().manual_seed(1), (torch.rand(6, 3, 2, 2), torch.arange(6) % 3)
        with Execution(capture=capture).training("cpu"):
            adv = [PGD(steps=4, batchnorm=batchnorm)(network, *batch, 0.1, generator=generator) for _ in range(3)]
        networks.append((network, adv))
    (called, adv), (replayed, again) = networks
    assert all(torch.equal(one, two) for one, two in zip(adv, again, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(called.buffers(), replayed.buffers(), strict=True))
    assert count_recordings(replayed) == 1


@pytest.mark.parametrize("objective", [AdversarialTraining(leftover_gradient=True), TRADES()], ids=str)
def test_training_equals_that_of_calls(objective: Any, tapes: list[Tape]) -> None:
    weights = []
    for capture in (False, True):
        torch.manual_seed(0)
        network = GatedMNISTCNN()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        with Execution(capture=capture).training("cpu"):
            for step in range(4):
                generator = torch.Generator().manual_seed(step)
                output = objective(network, *make_batch((4, 1, 28, 28), step), PGD(steps=4), 0.2, generator)
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
        weights.append([p.detach() for p in network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
    assert count_recordings(network) == 1


class Attributed(nn.Module):
    """A network whose Python attribute changes what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 3), 1.0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.linear(images.flatten(1)).square()
        return logits


def test_changed_attributes_and_replaced_weights_are_seen(tapes: list[Tape]) -> None:
    network, batch = Attributed(), (torch.rand(5, 1, 2, 2), torch.arange(5) % 3)
    attack = PGD(steps=20, loss="margin")
    for change in (lambda: None, lambda: setattr(network, "scale", -1.0), lambda: network.linear.reset_parameters(),
                   lambda: setattr(network, "linear", nn.Linear(4, 3))):  # fmt: skip
        change()
        assert torch.equal(run_attack(attack, network, batch, 0.2), call_steps(attack, network, batch, 0.2))
        assert count_recordings(network) == 1
    assert tapes


class Reading(Attributed):
    """A network that decides on the host."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if logits.sum() > 0 else -logits


class Random(Attributed):
    """A network that uses random numbers in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.dropout(images, 0.5, training=True))


class Counting(Attributed):
    """A network that changes at every call."""

    def forward(self, images: Tensor) -> Tensor:
        self.scale *= 1.5
        return super().forward(images)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Reading(), "makes the host wait"),
        (Random(), "random"),
        (nn.DataParallel(Attributed()), "DataParallel distributes it"),
        (Counting(), "change when it is called"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_cannot_be_recorded_is_called_with_one_warning(
    network: nn.Module, reason: str, tapes: list[Tape]
) -> None:
    batch, attack = (torch.rand(5, 1, 2, 2), torch.arange(5) % 3), PGD(steps=21)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        for _ in range(20):
            found = run_attack(attack, network, batch, 0.2)
    messages = [str(warning.message) for warning in given]
    assert len(messages) == 1
    assert re.search(f"is attacked without CUDA graphs, which takes longer: .*({reason})", messages[0])
    assert found.shape == batch[0].shape


def test_hooks_are_called(tapes: list[Tape]) -> None:
    network, batch, seen = Attributed(), (torch.rand(5, 1, 2, 2), torch.arange(5) % 3), []
    network.linear.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="Attributed is attacked without CUDA graphs.*Linear has hooks"):
        run_attack(PGD(steps=20), network, batch, 0.2)
    assert len(seen) == 20


def test_a_step_with_unknown_parts_is_called(tapes: list[Tape]) -> None:
    network, batch, factor = MNISTCNN().eval(), make_batch((4, 1, 28, 28)), 1.0
    attack = PGD(steps=20, loss=lambda logits, labels: factor * F.cross_entropy(logits, labels, reduction="none"))
    rising = run_attack(attack, network, batch, 0.2)
    factor = -1.0
    assert not torch.equal(run_attack(attack, network, batch, 0.2), rising)
    assert not tapes


def test_recordings_are_bounded_and_freed_with_the_network(tapes: list[Tape]) -> None:
    network = Attributed()
    for size in range(1, recording.MOST_RECORDINGS + 5):
        run_attack(PGD(steps=20), network, (torch.rand(size, 1, 2, 2), torch.arange(size) % 3), 0.2)
    assert count_recordings(network) == recording.MOST_RECORDINGS
    del network
    gc.collect()
    assert not recording._RECORDINGS
    assert tapes


def test_wrong_labels_are_found_in_every_batch(tapes: list[Tape]) -> None:
    network, (images, labels) = Attributed(), (torch.rand(5, 1, 2, 2), torch.arange(5) % 3)
    run_attack(PGD(steps=20), network, (images, labels), 0.2)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        run_attack(PGD(steps=20), network, (images, labels + 1), 0.2)
    assert count_recordings(network) == 1


def test_states_shrink_to_few_sizes() -> None:
    assert rows.smallest_size(250, 250) == 250
    assert rows.smallest_size(125, 250) == 125
    assert rows.smallest_size(126, 250) == 250
    assert rows.smallest_size(0, 1000) == 125
    assert {rows.smallest_size(left, 1000) for left in range(1001)} == {1000, 500, 250, 125}
    assert rows.smallest_size(3, 40) == 40


@dataclass
class Fooled:
    """A state of one mask."""

    fooled: Tensor


@pytest.mark.parametrize(("size", "differing", "share"), [(40, 2, 0.0), (40, 4, 0.05), (4, 1, 0.25), (1000, 102, 0.1)])
def test_one_borderline_image_of_a_batch_is_no_difference(size: int, differing: int, share: float) -> None:
    other = torch.zeros(size, dtype=torch.bool)
    other[:differing] = True
    found = largest_difference(Fooled(torch.zeros(size, dtype=torch.bool)), Fooled(other))
    assert found == pytest.approx(share)
