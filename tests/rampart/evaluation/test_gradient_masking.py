"""Each planted failure is found by its sign, and a sound model shows none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules import DigitsDataModule
from rampart.attacks import PGD, AtImage, Attack, Square
from rampart.evaluation import WorstCaseSearch, find_masking_signs, in_memory

ATTACKS: list[Attack] = [PGD(steps=5, iterate="best", stop_when_fooled=True), Square(queries=60)]


class Linear(nn.Module):
    """A sound model of the digits, fitted in a moment."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(self(images), labels).backward()
            optimizer.step()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


class Around(nn.Module):
    """A failure planted around a sound model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class QuantisedInput(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 4).round() / 4)  # type: ignore[no-any-return]


class SaturatedLogits(Around):
    def forward(self, images: Tensor) -> Tensor:
        return 1e5 * self.model(images)  # type: ignore[no-any-return]


class RandomNoise(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 0.1 * torch.randn_like(images))  # type: ignore[no-any-return]


class WrongNormalisation(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images / 255 - 10)  # type: ignore[no-any-return]


class Probabilities(Around):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(1)  # type: ignore[no-any-return]


class BatchStatistics(Around):
    """Normalises by batch statistics, in eval mode too."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return (logits - 3 * logits.mean(0)) / logits.std(0)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = DigitsDataModule()
    data.setup("test")
    images, labels, _ = next(iter(data.test_dataloader()))
    return images[:200], labels[:200]


@pytest.fixture(scope="module")
def sound(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Linear(*digits).eval()


def signs_of(model: nn.Module, digits: tuple[Tensor, Tensor]) -> dict[str, list[int]]:
    torch.manual_seed(0)
    searched = WorstCaseSearch(model, in_memory(*digits), ATTACKS, [0.02])
    found = searched.run()
    signs = find_masking_signs(model, searched.clean_pass.probe, found, [attack.name for attack in ATTACKS])
    assert all(sign.message for sign in signs)
    return {sign.name: sign.images for sign in signs}


def test_a_sound_model_shows_no_sign(sound: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    assert signs_of(sound, digits) == {}


@pytest.mark.parametrize(
    ("plant", "sign"),
    [
        (QuantisedInput, "zero gradients"),
        (QuantisedInput, "unbounded eps"),
        (SaturatedLogits, "zero gradients"),
        (RandomNoise, "randomised"),
        (WrongNormalisation, "constant"),
        (Probabilities, "softmax"),
        (BatchStatistics, "batch-dependent"),
    ],
)
def test_a_planted_failure_is_found(
    sound: nn.Module, digits: tuple[Tensor, Tensor], plant: type[Around], sign: str
) -> None:
    assert sign in signs_of(plant(sound).eval(), digits)


def test_a_model_in_train_mode_is_found_and_not_changed(digits: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    searched = WorstCaseSearch(model.eval(), in_memory(*digits), ATTACKS, [0.02])
    found = searched.run()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    signs = find_masking_signs(model, searched.clean_pass.probe, found, ["PGD-5", "Square-60"])
    assert [sign.name for sign in signs] == ["train mode"]
    assert "4 modules are in train mode" in signs[0].message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_images_fooled_only_without_gradients_are_named(sound: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    blind = [PGD(steps=1, step_size=1e-6, start=AtImage()), Square(queries=100)]
    searched = WorstCaseSearch(sound, in_memory(images, labels), blind, [0.1])
    found, names = searched.run(), [attack.name for attack in blind]
    signs = {s.name: s for s in find_masking_signs(sound, searched.clean_pass.probe, found, names)}
    assert signs["gradient-free"].images == (found.attack == 1).nonzero().squeeze(1).tolist()
    assert "Square-100" in signs["gradient-free"].message
    alone = WorstCaseSearch(sound, in_memory(images, labels), blind[1:], [0.1]).run()
    assert find_masking_signs(sound, searched.clean_pass.probe, alone, ["Square-100"]) == []


def test_a_model_without_correct_predictions_is_named(sound: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    wrong = (sound(images).argmax(1) + 1) % 10
    assert "no correct predictions" in signs_of(sound, (images, wrong))
