"""The paper's CIFAR-10 configs train like the paper's published loop, step by step in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from rampart.attacks.random import make_generator
from rampart.networks import ResNet18
from tests.commands.test_messages import ParsesOnly
from tests.conftest import ROOT

BATCHES, BATCH_SIZE = 3, 4
TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


class PaperLoop:
    """Extended adversarial training as CIFAR10/train.py of the paper's repository does it, in plain torch.

    The published loop attacks in train mode, so that BatchNorm normalises by the batch and its running statistics move
    at every step of the attack. It clears the weights' gradients before each backward pass of the attack and at the
    beginning of a batch, but not after the attack, so that the gradient of the attack's last step is added to that of
    the training loss.

    Args:
        network: Maps images in [0, 1] to logits; normalisation is its first layer.
        eps: Radius on the pixel scale.
        leftover: Keep the gradient of the attack's last step, as published.
        train_mode: Attack in train mode, as published.
    """

    def __init__(self, network: nn.Module, eps: float, leftover: bool, train_mode: bool) -> None:
        self.network, self.eps, self.leftover, self.train_mode = network, eps, leftover, train_mode
        self.optimizer: Optimizer = SGD(network.parameters(), 0.001, momentum=0.9, weight_decay=5e-4)
        self.passes = 0

    def attack(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        step_size = 2 / 255
        noise = torch.empty_like(images).uniform_(-self.eps, self.eps, generator=generator)
        adv = (images + noise).clamp(0, 1)
        for _ in range(int(2.5 * self.eps / step_size)):
            adv.requires_grad_()
            loss = F.cross_entropy(self.network(adv), labels)
            self.network.zero_grad()
            loss.backward()
            self.passes += 1
            assert adv.grad is not None
            change = (adv.detach() + step_size * adv.grad.sign() - images).clamp(-self.eps, self.eps)
            adv = (images + change).clamp(0, 1)
        return adv

    def train(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Make one update, and return the adversarial images."""
        self.optimizer.zero_grad()
        self.network.train(self.train_mode)
        adv = self.attack(images, labels, generator)
        self.network.train()
        if not self.leftover:
            self.optimizer.zero_grad()
        F.cross_entropy(self.network(adv), labels).backward()
        self.optimizer.step()
        return adv


@pytest.fixture(scope="module")
def cli() -> ParsesOnly:
    return ParsesOnly.make()


def build_module(cli: ParsesOnly, eps: int, *options: str) -> Any:
    """Build the module of a config as ``fit`` does, with a small network in place of the large one."""
    config = ROOT / f"configs/cifar10/extended_{eps}.yaml"
    small = ["--model.network=rampart.networks.ResNet18", "--model.network.width=2"]
    cli.parse_arguments(cli.parser, ["fit", "--config", str(config), *small, *options])
    return cli.parser.instantiate(cli.config).fit.model


def fit(module: Any, batches: DataLoader[Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Train on the batches in order, and return the adversarial images of each."""
    adversarial: list[Tensor] = []
    name = "rampart.objectives.adversarial_training.compute_logits"

    def recorded(network: nn.Module, adv: Tensor) -> Tensor:
        adversarial.append(adv.clone())
        logits: Tensor = network(adv)
        return logits

    monkeypatch.setattr(name, recorded)
    trainer = Trainer(
        max_epochs=1, precision="64-true", accelerator="cpu", default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches)
    return adversarial


LEFTOVER = "--model.objective.leftover_gradient=true"
TRAIN_MODE = "--model.attack.batchnorm=train_and_update"


@pytest.mark.parametrize("eps", [16, 32])
@pytest.mark.parametrize("options", [(), (LEFTOVER,), (TRAIN_MODE,), (LEFTOVER, TRAIN_MODE)], ids=str)
def test_three_updates_equal_the_papers_loop(
    cli: ParsesOnly, eps: int, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build_module(cli, eps, *options)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCHES * BATCH_SIZE, 3, 8, 8, generator=generator, dtype=torch.float64)
    images = images.round().where(torch.rand(images.shape, generator=generator) < 0.2, images)  # some are 0 or 1
    batches = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), BATCH_SIZE)
    network = ResNet18(width=2).double()
    network.load_state_dict(module.network.state_dict())
    paper = PaperLoop(network, eps / 255, LEFTOVER in options, TRAIN_MODE in options)

    ours = fit(module, batches, tmp_path, monkeypatch)
    for step, (batch, labels) in enumerate(batches):
        # The random numbers of the module's training step: (purpose, seed, rank, optimizer step, batch).
        theirs = paper.train(batch, labels, make_generator("cpu", "train", module.run_seed, 0, step, step))
        assert (theirs - batch).abs().max() == pytest.approx(eps / 255)
        torch.testing.assert_close(ours[step], theirs, **TOLERANCE)
    assert paper.passes == BATCHES * int(1.25 * eps)
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(module.network.state_dict()[name], expected, **TOLERANCE, msg=name)
    forwards = BATCHES * (1 + (int(1.25 * eps) if TRAIN_MODE in options else 0))
    assert module.network.bn1.num_batches_tracked == forwards
