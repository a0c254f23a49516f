"""CIFAR-10 and CIFAR-100, in files of their formats with few random images."""

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from datamodules import CIFAR10DataModule, CIFAR100DataModule, ImageSet
from datamodules.cifar import PIXELS

MODULES = pytest.mark.parametrize("module", [CIFAR10DataModule, CIFAR100DataModule])
Module = type[CIFAR10DataModule]
SIZES = {True: 200, False: 100}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.cifar.SIZES", SIZES)
    for source in (CIFAR10, CIFAR100):
        monkeypatch.setattr(source, "url", "http://127.0.0.1:9/")


def make_parts(module: Module) -> list[tuple[str, ImageSet]]:
    """Return the random images of each file and the name of that file in the binary version."""
    generator = np.random.default_rng(0)
    parts = []
    for train, files in ((True, module.binary.train), (False, module.binary.test)):
        for file in files:
            number = SIZES[train] // len(files)
            pixels = generator.integers(256, size=(number, 3, 32, 32), dtype=np.uint8)
            parts.append((file, ImageSet(torch.from_numpy(pixels), torch.arange(number) % module.num_classes)))
    return parts


def write_binary(module: Module, root: Path) -> Path:
    folder = root / module.binary.folder
    folder.mkdir(parents=True)
    for file, (images, labels) in make_parts(module):
        coarse = (labels % 20)[:, None][:, : len(module.binary.num_labels) - 1]
        records = torch.cat([coarse, labels[:, None], images.flatten(1)], 1).to(torch.uint8)
        (folder / file).write_bytes(records.numpy().tobytes())
    return folder


def write_python(module: Module, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write torchvision's version and have its checksums expected."""
    source = module.torchvision_class
    folder = root / str(source.base_folder)
    folder.mkdir(parents=True)
    key = "labels" if module is CIFAR10DataModule else "fine_labels"
    lists: dict[str, list[Any]] = {"train_list": [], "test_list": []}
    names = [name for name, _ in [*source.train_list, *source.test_list]]
    for name, (_, (images, labels)) in zip(names, make_parts(module), strict=True):
        content = pickle.dumps({"data": images.flatten(1).numpy(), key: labels.tolist()})
        (folder / name).write_bytes(content)
        where = "test_list" if name.startswith("test") else "train_list"
        lists[where].append([name, hashlib.md5(content, usedforsecurity=False).hexdigest()])
    meta = pickle.dumps({source.meta["key"]: [str(n) for n in range(module.num_classes)]})
    (folder / source.meta["filename"]).write_bytes(meta)
    for name, value in lists.items():
        monkeypatch.setattr(source, name, value)
    checksum = hashlib.md5(meta, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(source, "meta", source.meta | {"md5": checksum})
    return folder


def assert_read(module: Module, data_dir: Path) -> None:
    """Assert that a folder's images and labels are those of the parts."""
    data = module(str(data_dir))
    data.prepare_data()
    parts = [image_set for _, image_set in make_parts(module)]
    for read, written in ((data.read_train(), parts[:-1]), (data.read_test(), parts[-1:])):
        assert torch.equal(read.images, torch.cat([images for images, _ in written]))
        assert torch.equal(read.labels, torch.cat([labels for _, labels in written]))


def error(module: Module, data_dir: Path, kind: type[Exception]) -> str:
    """Return the message of the error that preparing and reading a folder raises: one line."""
    with pytest.raises(kind) as caught:  # noqa: PT012 - which of them fails is up to the data module
        data = module(str(data_dir), val_size=50)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@MODULES
def test_the_binary_version_is_read_from_its_folder_or_the_one_above(module: Module, tmp_path: Path) -> None:
    folder = write_binary(module, tmp_path)
    assert_read(module, folder)
    assert_read(module, tmp_path)


@MODULES
def test_the_version_of_torchvision_is_read_from_its_folder_or_the_one_above(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_python(module, tmp_path, monkeypatch)
    assert_read(module, folder)
    assert_read(module, tmp_path)


def test_the_binary_version_is_taken_if_both_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(CIFAR10DataModule, tmp_path)
    (write_python(CIFAR10DataModule, tmp_path, monkeypatch) / "data_batch_1").write_bytes(b"damaged")
    assert_read(CIFAR10DataModule, tmp_path)


def test_an_archive_beside_is_unpacked_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_python(CIFAR10DataModule, tmp_path, monkeypatch)
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    shutil.rmtree(folder)
    before = archive.read_bytes()
    assert "can't be downloaded" in error(CIFAR10DataModule, tmp_path, FileNotFoundError)  # its checksum is another
    assert contents(tmp_path) == {archive.name: before}
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(before, usedforsecurity=False).hexdigest())
    assert_read(CIFAR10DataModule, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, archive.name]


def test_a_folder_that_another_machine_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Any, root: str, **_: Any) -> None:
        for place in (Path(root), tmp_path):
            (place / CIFAR10.base_folder).mkdir()
            (place / CIFAR10.base_folder / "name").write_text(str(place))

    monkeypatch.setattr(CIFAR10, "__init__", download)
    CIFAR10DataModule(str(tmp_path)).prepare_data()
    assert contents(tmp_path) == {f"{CIFAR10.base_folder}/name": str(tmp_path).encode()}


def test_the_environment_variable_sets_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMPART_DATA", str(tmp_path))
    assert CIFAR10DataModule().data_dir == CIFAR100DataModule().data_dir == tmp_path


def test_missing_files_are_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    message = error(CIFAR10DataModule, tmp_path, FileNotFoundError)
    for part in ("CIFAR-10 is not in data_dir", "(it has MNIST)", "can't be downloaded", "cifar-10-batches-bin"):
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    (tmp_path / "file").touch()
    assert "is a file: set data.data_dir" in error(CIFAR100DataModule, tmp_path / "file", FileNotFoundError)


def test_the_folder_of_another_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (
        write_binary(CIFAR100DataModule, tmp_path),
        write_python(CIFAR100DataModule, tmp_path, monkeypatch),
    ):
        assert "is a folder of CIFAR-100, not of CIFAR-10" in error(CIFAR10DataModule, folder, ValueError)
    ten = write_binary(CIFAR10DataModule, tmp_path)
    assert "is a folder of CIFAR-10, not of CIFAR-100" in error(CIFAR100DataModule, ten, ValueError)
    mnist = tmp_path / "raw"
    mnist.mkdir()
    (mnist / "train-images-idx3-ubyte").touch()
    assert "is a folder of MNIST, not of CIFAR-10" in error(CIFAR10DataModule, mnist, ValueError)


@pytest.mark.parametrize("size", [0, 1000, 40 * (PIXELS + 1) + 1, 40 * (PIXELS + 2)])
def test_binary_files_of_another_size_are_refused(tmp_path: Path, size: int) -> None:
    file = write_binary(CIFAR10DataModule, tmp_path) / "data_batch_3.bin"
    file.write_bytes(bytes(size))
    before = contents(tmp_path)
    message = error(CIFAR10DataModule, tmp_path, ValueError)
    assert f"data_batch_3.bin has {size:,} bytes, not the 122,920 of CIFAR-10" in message
    assert contents(tmp_path) == before


@MODULES
def test_a_missing_binary_file_is_refused(module: Module, tmp_path: Path) -> None:
    folder = write_binary(module, tmp_path)
    for file in (folder / module.binary.test[0], folder / module.binary.train[0]):
        content = file.read_bytes()
        file.unlink()
        for data_dir in (tmp_path, folder):
            assert f"{file} is missing" in error(module, data_dir, FileNotFoundError)
        file.write_bytes(content)


@pytest.mark.parametrize(("module", "place", "label", "largest"), [
    (CIFAR10DataModule, 0, 10, 10), (CIFAR100DataModule, 0, 20, 99), (CIFAR100DataModule, 1, 100, 100),
])  # fmt: skip
def test_labels_outside_the_classes_are_refused(
    module: Module, place: int, label: int, largest: int, tmp_path: Path
) -> None:
    file = write_binary(module, tmp_path) / module.binary.train[0]
    content = bytearray(file.read_bytes())
    content[place] = label
    file.write_bytes(content)
    assert f"{file} has labels" in error(module, tmp_path, ValueError)


@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_a_damaged_version_of_torchvision_is_refused_and_kept(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_python(CIFAR10DataModule, tmp_path, monkeypatch) / "data_batch_2"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:500] if damage == "truncated" else content[:-9] + b"\0" + content[-8:])
    before = contents(tmp_path)
    message = error(CIFAR10DataModule, tmp_path, ValueError)
    assert "(missing or with another checksum: data_batch_2): delete it" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("train_size", [1, 9, 10, 55, 149, 150])
def test_a_part_of_the_training_images_is_balanced_and_apart_from_the_held_out(tmp_path: Path, train_size: int) -> None:
    write_binary(CIFAR10DataModule, tmp_path)

    def split(train_size: int | None, **settings: Any) -> tuple[set[bytes], set[bytes], torch.Tensor]:
        data = CIFAR10DataModule(str(tmp_path), val_size=50, train_size=train_size, **settings)
        data.setup("fit")
        loaders: Any = data.train_dataloader(), data.val_dataloader()
        train, held_out = ({image.numpy().tobytes() for image in loader.images} for loader in loaders)
        return train, held_out, loaders[0].labels.bincount(minlength=10)

    everything, held_out, available = split(None)
    train, held_out_too, counts = split(train_size)
    larger, _, _ = split(min(train_size + 7, 150))
    assert len(train) == train_size == counts.sum()
    assert held_out_too == held_out
    assert train <= larger <= everything
    assert not train & held_out
    assert ((counts >= train_size // 10) | (counts == available)).all()
    assert train_size > 55 or counts.max() - counts.min() <= 1
    assert train == split(train_size)[0]
    assert train_size == 150 or train != split(train_size, split_seed=1)[0]


@pytest.mark.parametrize(("settings", "message"), [
    ({"train_size": 0}, "data.train_size must be at least 1, got 0"),
    ({"train_size": 151}, "data.train_size must be at most 150, the 200 training images without the 50 of "
                          "data.val_size; got 151"),
    ({"val_size": 200}, "data.val_size must leave images to train on: got 200 of 200"),
    ({"max_shift": 32}, "below the images' height and width, 32 x 32"),
    ({"border": "grey"}, "border must be black or edge, got 'grey'"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_binary(CIFAR10DataModule, tmp_path)

    def use() -> None:
        data = CIFAR10DataModule(str(tmp_path), **({"val_size": 50} | settings))
        data.setup("fit")
        data.train_dataloader()

    with pytest.raises(ValueError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)
