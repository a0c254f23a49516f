"""Modules like those of the robustness library, whose checkpoints have the same names, order and contents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class InputNormalize(nn.Module):
    """Normalisation with the library's names of the buffers."""

    new_mean: Tensor
    new_std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("new_mean", mean[:, None, None])  # both normalisers share their data
        self.register_buffer("new_std", std[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images.clamp(0, 1) - self.new_mean) / self.new_std


class Attacker(nn.Module):
    """The attack, which holds the network and its normalisation."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.normalize = InputNormalize(mean, std)
        self.model = model


class AttackerModel(nn.Module):
    """Network, normalisation and attack; every weight is held twice."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        numbers = torch.tensor(mean), torch.tensor(std)
        self.normalizer = InputNormalize(*numbers)
        self.model = model
        self.attacker = Attacker(model, *numbers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalizer(images))
        return logits


def train_and_save(model: AttackerModel, images: Tensor, path: Path) -> None:
    """Take a step and save it as the library's training loop does, with its cyclic learning rate (numpy numbers)."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.interp([epoch], [0, 1], [1, 1])[0])
    parallel = nn.DataParallel(model)
    parallel(images).logsumexp(1).mean().backward()
    optimizer.step()
    checkpoint = {
        "model": parallel.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 1,
        "amp": None,
        "adv_prec1": torch.tensor(25.0),
    }
    torch.save(checkpoint, path)
