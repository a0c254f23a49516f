"""A tiny custom data module with ordinary loaders, and a tiny custom network."""

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Toy(LightningDataModule):
    """Random images of 4x4 pixels in two classes, a bright and a dark one."""

    def __init__(self, images: int = 12, batch_size: int = 4) -> None:
        super().__init__()
        labels = torch.arange(images) % 2
        bright = torch.rand(images, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.images, self.batch_size = TensorDataset((bright + labels[:, None, None, None]) / 2, labels), batch_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.images, self.batch_size)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.images, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class TrainOnly(LightningDataModule):
    """A data module with only training images."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return Toy().train_dataloader()


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 2))


ATTACK = "{class_path: rampart.attacks.PGD, init_args: {steps: 1}}"
SETTINGS = [
    "--data=tests.commands.toy.Toy",
    "--model=AdversarialClassifier",
    "--model.network=tests.commands.toy.Net",
    "--model.eps=0.1",
    f"--model.attack={ATTACK}",
    f"--model.val_attack={ATTACK}",
    f"--model.test_attacks=[{{eps: 0.1, attack: {ATTACK}}}]",
    "--curve.num_images=0",
    "--images.num_images=0",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
]
