"""Memory format of weights, images and optimizer state in every command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from commands.command_line import RampartCLI
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.kernels import Execution
from tests.commands.toy import SETTINGS

SEEN: set[tuple[tuple[int, ...], bool]] = set()
"""(shape, is channels_last) of the images of every call of a network."""


class ColourNet(nn.Module):
    """A small convolutional network that notes the memory format of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_floating_point():
            SEEN.add((tuple(images.shape), images.is_contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.linear(self.conv(images).flatten(1).relu())
        return logits


class ColourData(LightningDataModule):
    """Random images of 4x4 pixels in three channels."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def run(tmp_path: Path, command: str, *more: str) -> Any:
    SEEN.clear()
    words = [
        command, *SETTINGS, "--data=tests.lightning_modules.test_memory_format.ColourData",
        "--model.network=tests.lightning_modules.test_memory_format.ColourNet", f"--runs_dir={tmp_path}",
        "--trainer.logger=false", *more,
    ]  # fmt: skip
    return RampartCLI(words)


@pytest.mark.parametrize("command", ["test", "evaluate", "predict"])
def test_every_command_gives_the_network_images_in_the_chosen_format(tmp_path: Path, command: str) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(ColourNet().state_dict(), weights)
    more = [f"--ckpt_path={weights}", "--execution.memory_format=channels_last"]
    more += ["--preset=quick"] if command == "evaluate" else []
    model = run(tmp_path, command, *more).model
    assert model.network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    size = 12 if command == "evaluate" else 4
    assert ((size, 3, 4, 4), True) in SEEN


def test_a_run_resumed_in_another_format_trains_on_equally(tmp_path: Path) -> None:
    runs = {}
    for kind in (None, "channels_last"):
        for epochs in (1, 2):
            torch.manual_seed(0)
            attack = PGD(steps=2)
            module = AdversarialClassifier(
                ColourNet(), eps=0.1, attack=attack, test_attacks=(NamedAttack(attack, 0.1),)
            )
            module.execution = Execution(memory_format=kind if epochs == 2 else None)
            quiet: Any = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
            trainer = Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=tmp_path, **quiet)
            SEEN.clear()
            trainer.fit(module, ColourData(), ckpt_path=tmp_path / "a.ckpt" if epochs == 2 else None)
            if epochs == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
        assert ((4, 3, 4, 4), kind is not None) in SEEN
        (optimizer,) = trainer.optimizers
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == parameter.stride()
        runs[kind] = module.network.state_dict()
        assert runs[kind]["conv.weight"].is_contiguous() is (kind is None)
    for name, weights in runs[None].items():
        torch.testing.assert_close(weights, runs["channels_last"][name])


def test_by_default_nothing_changes_on_a_cpu(tmp_path: Path) -> None:
    model = run(tmp_path, "fit", "--trainer.max_epochs=1").model
    assert model.image_format is None
    assert model.network.conv.weight.is_contiguous()
    assert {channels_last for _, channels_last in SEEN} == {False}
