"""The summary of a training run: cost, loss, eps and predicted classes."""

import json
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.optim import SGD

from callbacks import EpsilonRampCallback
from experiments.large_eps.summary import SummaryCallback
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD
from rampart.schedules import Phase
from tests.commands.toy import Net, Toy


class Constant(Net):
    """A network whose second class always has the largest logit."""

    def __init__(self) -> None:
        super().__init__()
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        nn.init.zeros_(linear.weight)
        linear.bias.data = torch.tensor([0.0, 1.0])


def test_the_summary_counts_images_of_attacks_and_updates_and_predicted_classes(tmp_path: Path) -> None:
    module = AdversarialClassifier(
        Constant(), eps=0.2, attack=PGD(steps=2), val_attack=PGD(steps=1), optimizer=lambda p: SGD(p, lr=0.0)
    )
    ramp = EpsilonRampCallback((Phase(end_eps=0, epochs=1), Phase(end_eps=0.2, epochs=1)))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[SummaryCallback(), ramp], logger=False, barebones=False,
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = Toy(images=10, batch_size=4)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["gradient_evaluations"] == 10 + 10 * 3  # at eps 0 there is no attack
    assert (summary["steps"], summary["largest_eps"], summary["last_eps"]) == (6, 0.2, 0.2)
    assert summary["predicted"] == [0, 10]
    expected = -torch.log_softmax(torch.tensor([0.0, 1.0]), 0)
    assert summary["loss"] == pytest.approx(float(expected.mean()), abs=1e-4)  # batches of 4, 4 and 2, half of each
