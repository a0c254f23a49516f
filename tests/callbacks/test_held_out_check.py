"""Checks of a training by a stronger attack on held-out images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks import CollapseGuard
from rampart.attacks import PGD, AtImage
from rampart.data import TensorBatches
from tests.callbacks.guarded_training import Head, read_events, stripes, train

FGSM = PGD(steps=1, relative_step_size=1.0, start=AtImage())


def test_held_out_checks_find_what_a_stronger_attack_fools(tmp_path: Path) -> None:
    weak = FGSM.with_settings(step_size=1e-4)  # hardly an attack
    guard = CollapseGuard(every_n_steps=2, check_share=0.5)
    train(tmp_path, guard, attack=weak, eps=0.5, held_out=stripes(size=32), max_steps=80)
    (event,) = read_events(tmp_path)
    assert event["kind"] == "catastrophic overfitting"
    assert "of 48 held-out images 100% are robust to the training attack, but 0% to a stronger one" in event["text"]


def test_checks_do_not_depend_on_the_time_of_the_first_validation(tmp_path: Path) -> None:
    guards = CollapseGuard(check_share=1), CollapseGuard(check_share=1)
    for guard, epochs in zip(guards, (1, 50), strict=True):
        train(tmp_path, guard, held_out=stripes(), check_val_every_n_epoch=epochs)
    ours, theirs = (guard.state_dict()["check"] for guard in guards)
    assert ours == theirs
    assert ours["number"] > 0


@pytest.mark.parametrize("loader", ["tensors", "DataLoader"])
def test_checks_change_nothing_in_training(loader: str, tmp_path: Path) -> None:
    results = []
    for share in (0.9, 0.0):
        batches = stripes(size=32)
        held_out: Any = batches if loader == "tensors" else DataLoader(Labelled(batches), batch_size=8, shuffle=True)
        guard = CollapseGuard(every_n_steps=2, check_share=share)
        module = train(tmp_path, guard, network=Head(batchnorm=True), held_out=held_out, max_steps=80, attack=FGSM)
        assert (guard.state_dict()["check"]["number"] > 2) == (share > 0)
        results.append((list(module.network.state_dict().values()), torch.rand(3)))
    for ours, theirs in zip(*(tensors for tensors, _ in results), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(results[0][1], results[1][1])


class Labelled(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels, one by one."""

    def __init__(self, batches: TensorBatches) -> None:
        self.images, self.labels = batches.images.float() / 255, batches.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


@pytest.mark.parametrize(("share", "attack"), [(0.6, FGSM), (0.4, PGD(steps=3)), (0.9, PGD(steps=10))])
def test_checks_cost_their_share_of_the_training(share: float, attack: PGD, tmp_path: Path) -> None:
    guard = CollapseGuard(every_n_steps=5, check_share=share)
    train(tmp_path, guard, attack=attack, held_out=stripes(size=32), max_steps=80)
    assert isinstance(attack.steps, int)
    cost = guard.state_dict()["check"]["number"] * 16 * (attack.steps + 11)
    spent = cost / (80 * 8 * (attack.steps + 1))
    assert spent == 0 if attack.steps == 10 else share / 3 < spent <= share
