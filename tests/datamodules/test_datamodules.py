import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import DigitsDataModule, ImageSet, InMemoryDataModule, MNISTDataModule


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in MNIST's format and size, with random images."""
    raw = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, n in (("train", 60_000), ("t10k", 10_000)):
        pixels = torch.randint(256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels.numpy().tobytes())
        digits = (torch.arange(n) % 10).to(torch.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + digits.numpy().tobytes())
    return raw.parent.parent


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    data = DigitsDataModule(val_size=200)
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def all_images(batches: Any) -> tuple[Tensor, Tensor]:
    images, labels, _ = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_digits_are_split_without_overlap_and_balanced(digits: DigitsDataModule) -> None:
    splits = [all_images(b) for b in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader())]
    assert [len(labels) for _, labels in splits] == [3800, 200, 1000]
    assert splits[2][1].tolist() == list(range(10)) * 100
    assert torch.cat([splits[0][1], splits[1][1]]).bincount().tolist() == [400] * 10
    everything = torch.cat([images for images, _ in splits]).flatten(1)
    assert len(everything.unique(dim=0)) == 5000
    assert everything.min() == 0
    assert everything.max() == 1


def test_digits_are_real_digits(digits: DigitsDataModule) -> None:
    """The nearest class mean of training images classifies most test images: labels belong to images."""
    (train, labels), (test, truth) = all_images(digits.train_dataloader()), all_images(digits.test_dataloader())
    means = torch.stack([train[labels == digit].flatten(1).mean(0) for digit in range(10)])
    guess = torch.cdist(test.flatten(1), means).argmin(1)
    assert (guess == truth).float().mean() > 0.75


def test_the_held_out_images_depend_on_the_split_seed_alone() -> None:
    held_out = []
    for split_seed, run_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(run_seed)
        data = DigitsDataModule(val_size=50, split_seed=split_seed)
        data.setup("fit")
        held_out.append(all_images(data.val_dataloader())[0])
    assert torch.equal(held_out[0], held_out[1])
    assert not torch.equal(held_out[0], held_out[2])


def test_mnist_is_read_with_its_official_split(mnist_root: Path) -> None:
    data = MNISTDataModule(data_dir=str(mnist_root), val_size=1000)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert len(data.train_dataloader().labels) == 59_000
    assert len(data.val_dataloader().labels) == 1000  # type: ignore[union-attr]
    images, labels, index = next(iter(data.test_dataloader()))
    raw = (mnist_root / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16 : 16 + 784]
    assert torch.equal((images[0].flatten() * 255).round().byte(), torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    assert labels[:4].tolist() == index[:4].tolist() == [0, 1, 2, 3]


def test_nothing_is_held_out_at_val_size_zero(mnist_root: Path) -> None:
    data = MNISTDataModule(data_dir=str(mnist_root), val_size=0)
    data.setup("fit")
    assert len(data.train_dataloader().labels) == 60_000
    assert data.val_dataloader() == []
    assert len(data.train_dataloader()) == 469


def test_the_environment_variable_sets_the_folder(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMPART_DATA", str(mnist_root))
    assert MNISTDataModule().data_dir == mnist_root


def test_missing_mnist_files_are_an_error_that_names_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(FileNotFoundError, match=r"data_dir.*DigitsDataModule") as caught:
        MNISTDataModule(data_dir=str(tmp_path)).prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("size", [0, 10, 5000])
def test_truncated_mnist_is_refused(mnist_root: Path, tmp_path: Path, name: str, size: int) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_root / "MNIST/raw").iterdir():
        (raw / file.name).write_bytes(file.read_bytes()[:size] if file.name == name else file.read_bytes())
    data = MNISTDataModule(data_dir=str(tmp_path))
    data.prepare_data()
    with pytest.raises(ValueError, match="damaged or truncated") as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"eval_batch_size": -1}, {"val_size": -5}, {"max_shift": -1}])
def test_sizes_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"data.{next(iter(settings))} must be at least"):
        DigitsDataModule(**settings)


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="val_size must leave images to train on: got 4000 of 4000"):
        DigitsDataModule(val_size=4000).setup("fit")


def test_labels_outside_the_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitsDataModule, "num_classes", 5)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\), the data has 0 to 9"):
        DigitsDataModule().setup("fit")


class Custom(InMemoryDataModule):
    """A custom data module."""

    def __init__(self, images: Tensor, labels: Tensor, **settings: Any) -> None:
        super().__init__(batch_size=2, **settings)
        self.image_set = ImageSet(images, labels)

    def read_train(self) -> ImageSet:
        return self.image_set

    read_test = read_train


IMAGES, LABELS = torch.zeros(6, 3, 5, 4, dtype=torch.uint8), torch.arange(6) * 4


def test_a_custom_data_module_sets_its_number_of_classes() -> None:
    data = Custom(IMAGES, LABELS, num_classes=21)
    data.setup("fit")
    data.setup("test")
    assert data.num_classes == 21
    assert len(data.train_dataloader()) == 3
    assert next(iter(data.test_dataloader()))[1].tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 20\), the data has 0 to 20"):
        Custom(IMAGES, LABELS, num_classes=20).setup("fit")


@pytest.mark.parametrize(
    ("images", "labels", "settings", "message"),
    [
        (IMAGES[:0], LABELS[:0], {}, r"N above 0; the data has \(0, 3, 5, 4\)"),
        (IMAGES.float(), LABELS, {}, r"uint8, N above 0; the data has .*float32"),
        (IMAGES[:, 0], LABELS, {}, r"must be \(N, C, H, W\)"),
        (IMAGES, LABELS[:5], {}, r"labels must be \(6,\), int64"),
        (IMAGES, LABELS.float(), {}, r"labels must be \(6,\), int64, .*float32"),
        (IMAGES, LABELS, {"max_shift": 4}, "below the images' height and width, 5 x 4, .*; got 4"),
        (IMAGES, LABELS, {"num_classes": 0}, r"data\.num_classes must be at least 1, got 0"),
    ],
)
def test_unusable_images_and_labels_are_refused_in_one_line(
    images: Tensor, labels: Tensor, settings: dict[str, Any], message: str
) -> None:
    def use() -> None:
        data = Custom(images, labels, **({"num_classes": 21} | settings))
        data.setup("fit")
        data.train_dataloader()

    with pytest.raises(ValueError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)
