"""Data module of image files in one folder per class."""

import pickle
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from cli import main
from datamodules import ImageFolderDataModule
from rampart.data import TensorBatches, WorkerBatches
from rampart.files.weight_files import read_checkpoint
from tests.conftest import ROOT

COUNTS = {"train": (9, 15), "test": (3, 4)}
CLASSES = ("chat noir", "Éléphant")  # a space, and characters beyond ASCII
FOLDER = {"val_size": 0.25, "num_workers": 0, "batch_size": 5, "eval_batch_size": 4}


def save(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), **options: Any) -> Path:
    """Write a random RGB image of a height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def fill(folder: Path, counts: tuple[int, ...] = (9, 15), classes: tuple[str, ...] = CLASSES, first: int = 0) -> None:
    for label, (name, count) in enumerate(zip(classes, counts, strict=True)):
        for index in range(count):
            save(folder / name / f"{index:02}.png", seed=first + 100 * label + index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test images of two classes."""
    path = tmp_path_factory.mktemp("my images")
    for number, (part, counts) in enumerate(COUNTS.items()):
        fill(path / part, counts, first=1000 * number)
    return path


def make(folder: Path, *stages: str, **settings: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(str(folder), **(FOLDER | settings))
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def loaders(data: ImageFolderDataModule) -> list[Any]:
    return [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]


def read_all(batches: Any) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def refusal(folder: Path, *stages: str, **settings: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        make(folder, *stages, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_read_unchanged_with_sorted_classes(folder: Path) -> None:
    data = make(folder)
    assert (data.classes, data.num_classes) == (CLASSES, 2)
    images, labels, index = read_all(data.test_dataloader())
    assert labels.tolist() == [0] * 3 + [1] * 4
    assert index.tolist() == list(range(7))
    expected = [np.array(Image.open(file)) for file in sorted((folder / "test").glob("*/*.png"))]
    assert torch.equal((images * 255).round().byte(), torch.from_numpy(np.stack(expected)).movedim(-1, 1))


def test_held_out_images_have_each_class_in_its_share_by_the_split_seed_alone(folder: Path) -> None:
    train, val, _ = (read_all(batches) for batches in loaders(make(folder)))
    assert [part[1].bincount().tolist() for part in (train, val)] == [[7, 11], [2, 4]]
    both = torch.cat([train[0], val[0]]).flatten(1)
    assert len(both.unique(dim=0)) == 24
    torch.manual_seed(1)
    again, other = (read_all(make(folder, split_seed=seed).val_dataloader())[0] for seed in (0, 1))
    assert torch.equal(again, val[0])
    assert not torch.equal(other, val[0])


def test_a_folder_of_classes_alone_is_split_by_seed(folder: Path) -> None:
    train, val, test = (read_all(each) for each in loaders(make(folder / "train", val_size=4, test_size=0.25)))
    assert [part[1].bincount().tolist() for part in (train, val, test)] == [[5, 9], [2, 2], [2, 4]]
    assert len(torch.cat([train[0], val[0], test[0]]).flatten(1).unique(dim=0)) == 24


def test_a_validation_folder_is_used_whole(folder: Path, tmp_path: Path) -> None:
    for part, source in (("train", "train"), ("val", "test"), ("test", "test")):
        (tmp_path / part).symlink_to(folder / source)
    data = make(tmp_path, val_size=1000)
    assert [len(batches.labels) for batches in loaders(data)] == [24, 7, 7]
    assert make(folder, val_size=0).val_dataloader() == []


def test_train_size_takes_the_same_share_of_each_class_and_leaves_the_held_out_images(folder: Path) -> None:
    small = make(folder, train_size=8)
    assert read_all(small.train_dataloader())[1].bincount().tolist() == [3, 5]
    held_out: Any = [make(folder).val_dataloader(), small.val_dataloader()]
    assert torch.equal(held_out[0].images, held_out[1].images)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_give_the_batches_of_images_in_memory_bit_by_bit(folder: Path, num_workers: int) -> None:
    settings = {"max_shift": 2, "flip": True, "image_size": (7, 8)}
    held, read = (make(folder, in_memory=each, **settings | {"num_workers": num_workers}) for each in (True, False))
    kinds = [{type(batches) for batches in loaders(data)} for data in (held, read)]
    assert kinds == [{TensorBatches}, {WorkerBatches}]
    state = torch.get_rng_state()
    for in_memory, by_workers in zip(loaders(held), loaders(read), strict=True):
        for epoch in (0, 1):  # the second pass of the same workers
            in_memory.set_epoch(epoch)
            by_workers.set_epoch(epoch)
            assert_equal(list(in_memory), list(by_workers))
    assert torch.equal(torch.get_rng_state(), state)


def assert_equal(expected: list[Any], batches: list[Any]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(expected, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_resumes_with_the_next_batch_although_workers_read_ahead(folder: Path) -> None:
    settings: dict[str, Any] = {"in_memory": False, "num_workers": 1, "flip": True, "max_shift": 1}
    whole, interrupted, resumed = (make(folder, "fit", **settings).train_dataloader() for _ in range(3))
    for batches in (whole, interrupted, resumed):
        batches.set_epoch(3)
    expected, begun = list(whole), iter(interrupted)
    assert_equal(expected[:2], [next(begun), next(begun)])
    assert interrupted.state_dict() == {"epoch": 3, "done": 2}
    resumed.load_state_dict(interrupted.state_dict())
    assert_equal(expected[2:], list(resumed))
    assert_equal(expected, list(interrupted))  # a pass that was broken off does not affect the next


@pytest.mark.parametrize("in_memory", [True, False])
def test_two_ranks_read_each_test_image_once_and_equal_numbers_in_training(folder: Path, in_memory: bool) -> None:
    tested, trained = [], []
    for rank in (0, 1):
        data = make(folder, in_memory=in_memory)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            state=SimpleNamespace(status="finished", fn="fit"), global_rank=rank, world_size=2, num_nodes=1, run_seed=0
        )
        tested.append(read_all(data.test_dataloader())[2].tolist())
        trained.append(read_all(data.train_dataloader())[2].tolist())
    assert sorted(tested[0] + tested[1]) == list(range(7))
    assert sorted(trained[0] + trained[1]) == list(range(18))
    assert len(trained[0]) == len(trained[1])


def test_readers_can_be_sent_to_spawned_workers(folder: Path) -> None:
    batches: Any = make(folder, in_memory=False).test_dataloader()
    dataset = pickle.loads(pickle.dumps(batches._loader.dataset))  # noqa: S301 - our own bytes
    assert dataset.__getitems__(torch.tensor([1, 0])).shape == (2, 3, 6, 5)


def test_images_are_held_in_memory_while_they_take_half_of_what_is_free(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 24 * 3 * 6 * 5
    for free, held in ((2 * needed, True), (2 * needed - 1, False), (None, True)):
        monkeypatch.setattr("datamodules.image_folder.free_host_memory", lambda free=free: free)
        kind = TensorBatches if held else WorkerBatches
        assert type(make(folder, "fit").train_dataloader()) is kind


def test_images_are_resized_once_and_converted_to_gray(folder: Path) -> None:
    images = read_all(make(folder, image_size=(4, 9), channels=1).test_dataloader())[0]
    assert images.shape == (7, 1, 4, 9)
    first = Image.open(min((folder / "test").glob("*/*.png"))).convert("L").resize((9, 4), Image.Resampling.BILINEAR)
    assert torch.equal((images[0, 0] * 255).round().byte(), torch.from_numpy(np.array(first)))


def test_images_that_are_all_stored_as_gray_stay_gray(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / name / "1.png")
        Image.open(tmp_path / name / "1.png").convert("L").save(tmp_path / name / "1.png")
        save(tmp_path / name / "2.png")
        Image.open(tmp_path / name / "2.png").convert("LA").save(tmp_path / name / "2.png")
    assert make(tmp_path, "test", test_size=2).test_dataloader().images.shape == (2, 1, 6, 5)
    save(tmp_path / "b" / "2.png")
    assert make(tmp_path, "test", test_size=2).test_dataloader().images.shape == (2, 3, 6, 5)


def break_off(path: Path) -> None:
    content = save(path, size=(32, 32)).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)


def hold_one_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "Éléphant").rename(root / f"{part}_of_elephants")


def change(do: Callable[[Path, Path], Any]) -> Callable[[Path], Any]:
    """Return a function of a folder that changes its two folders of training classes."""
    return lambda root: do(root / "train" / CLASSES[0], root / "train" / CLASSES[1])


BROKEN: list[tuple[Any, dict[str, Any], str]] = [
    (lambda root: save(root / "train/cat/1.png"), {}, "train and .*test must have the same .*; only in .*train: cat"),
    (lambda root: make_folders(root, "test/dog", "test/emu"), {}, "only in .*test: dog, emu$"),
    (lambda root: make_folders(root, "train/cat", "test/cat"), {}, "class folder .*train/cat holds no images"),
    (hold_one_class, {}, "train holds one class folder, chat noir: a classifier needs two"),
    (change(lambda a, b: break_off(a / "x.jpg")), {"image_size": 6}, r"chat noir/x\.jpg can't be read as an image"),
    (change(lambda a, b: break_off(b / "x.png")), {"image_size": 6}, r"x\.png can't be .* \(image file is truncated"),
    (change(lambda a, b: (b / "x.png").write_text("<html>")), {}, r"Éléphant/x\.png .*not an image of any"),
    (change(lambda a, b: (b / "x.png").symlink_to("none")), {}, r"Éléphant/x\.png can't be read"),
    (
        change(lambda a, b: save(b / "99.png", size=(5, 6))),
        {},
        r"00\.png has 6 x 5 .* and .*99\.png 5 x 6: set data",
    ),
    (change(lambda a, b: (a / "again").symlink_to(a)), {}, "again is a link to a folder that holds it"),
    (change(lambda a, b: (a / "notes.txt").touch()), {}, r"notes\.txt is not an image \(\.bmp, "),
    (change(lambda a, b: (a / ".hidden").touch()), {}, r"\.hidden is not an image"),
    (
        lambda root: save(root / "train/stray.png"),
        {},
        r"holds images outside of its class folders: .* stray\.png",
    ),
    (lambda root: None, {"val_size": 24}, "ask for more than the 24 images .*: 24 are held out, 0 left"),
    (lambda root: None, {"val_size": 10, "train_size": 15}, "24 images that .* 10 are held out, 14 left"),
    (lambda root: None, {"max_shift": 5}, "max_shift must be .* 6 x 5"),
]


@pytest.mark.parametrize(("harm", "settings", "message"), BROKEN)
def test_unusable_folders_are_refused_in_one_line(
    tmp_path: Path, harm: Any, settings: dict[str, Any], message: str
) -> None:
    for part in COUNTS:
        fill(tmp_path / part)
    harm(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        make(tmp_path, "fit", **settings).train_dataloader()
    assert "\n" not in str(caught.value)


def test_folders_without_classes_are_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    assert "none does not exist" in refusal(tmp_path / "none")
    assert "holds no class folders: it must hold one folder of images per class, got nothing" in refusal(tmp_path)
    save(tmp_path / "train/1.png")
    save(tmp_path / "test/1.png")
    assert "train holds no class folders" in refusal(tmp_path)
    assert "1.png is not a folder" in refusal(tmp_path / "train/1.png")
    (tmp_path / "only").mkdir()
    (tmp_path / "only/test").symlink_to(folder / "test")
    assert "holds no folder train: it has test" in refusal(tmp_path / "only")
    assert "data.test_size must give test images" in refusal(folder / "train", test_size=0)


def test_classes_may_be_named_as_the_parts_are(tmp_path: Path) -> None:
    fill(tmp_path, (3, 3, 3), ("bus", "car", "train"))
    assert make(tmp_path, "fit").classes == ("bus", "car", "train")


@pytest.mark.parametrize("settings", [
    {"val_size": 1.0}, {"val_size": -1}, {"test_size": -0.5}, {"image_size": 0}, {"channels": 4}, {"num_workers": -1},
    {"batch_size": 0},
])  # fmt: skip
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"data\.{next(iter(settings))} must be "):
        ImageFolderDataModule("anywhere", **settings)


def test_files_that_systems_add_are_ignored_and_subfolders_read(tmp_path: Path) -> None:
    fill(tmp_path, (3, 4))
    for name in (".DS_Store", "Thumbs.db", "chat noir/.DS_Store", "chat noir/._00.png", "labels.csv"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    save(tmp_path / "chat noir/more/A.PNG")
    data = make(tmp_path, "fit", test_size=1, val_size=0)
    assert read_all(data.train_dataloader())[1].bincount().tolist() in ([3, 4], [4, 3])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_that_workers_find_is_named_in_one_line(tmp_path: Path, num_workers: int) -> None:
    fill(tmp_path, (3, 3))
    break_off(tmp_path / CLASSES[0] / "x.png")
    data = make(tmp_path, image_size=6, in_memory=False, num_workers=num_workers, test_size=1, val_size=0)
    with pytest.raises(ValueError, match=r"x\.png can't be read as an image \(image file is truncated\)") as caught:
        list(chain(data.train_dataloader(), data.test_dataloader()))
    assert "\n" not in str(caught.value)


TINY = "tests.datamodules.test_image_folder.Tiny"


class Tiny(torch.nn.Sequential):
    """A linear classifier."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(90, num_classes))


def fit(folder: Path, runs: Path, *arguments: str) -> Iterator[Path]:
    """Run `fit` in-process and yield its checkpoints, by step."""
    main([
        "fit", "--data=ImageFolderDataModule", f"--data.data_dir={folder}", "--data.batch_size=5", "--data.flip=true",
        "--data.max_shift=1", f"--model.network={TINY}", "--model.eps=8/255", "--model.attack.class_path=PGD",
        "--model.attack.init_args.steps=1", f"--runs_dir={runs}", "--name=run", "--checkpoint.every_n_train_steps=1",
        "--checkpoint.save_top_k=-1", "--checkpoint.monitor=null", "--trainer.max_epochs=2", "--curve.num_images=0",
        "--images.num_images=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--test_after_fit=false", "--trainer.num_sanity_val_steps=0", *arguments,
    ])  # fmt: skip
    run = max((runs / "run").glob("fit-*"), key=lambda path: int(path.name.split("-")[1]))
    yield from sorted((run / "checkpoints").glob("epoch*.ckpt"), key=lambda path: int(path.stem.split("step")[1]))


@pytest.mark.parametrize("source", [["--data.in_memory=true"], ["--data.in_memory=false", "--data.num_workers=1"]])
def test_a_run_resumed_within_an_epoch_equals_the_whole_run(folder: Path, tmp_path: Path, source: list[str]) -> None:
    whole = list(fit(folder, tmp_path, *source))
    assert len(whole) == 10  # 22 images in batches of 5, twice
    expected = read_checkpoint(whole[-1])["state_dict"]
    resumed = list(fit(folder, tmp_path, *source, f"--ckpt_path={whole[6]}"))  # after two batches of the second epoch
    assert len(resumed) == 3
    state = read_checkpoint(resumed[-1])["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.fixture
def fast_16(tmp_path: Path) -> list[str]:
    """Options of the shipped config with two lines for a folder in place of CIFAR-10, and a toy's size."""
    fill(tmp_path / "mine", (4,) * 10, tuple(f"class {label}" for label in range(10)))
    lines = f"  class_path: ImageFolderDataModule\n  init_args: {{data_dir: {tmp_path / 'mine'}}}\n"
    (tmp_path / "mine.yaml").write_text(f"data:\n{lines}")
    return [
        "fit", f"--config={ROOT / 'configs/cifar10/fast_16.yaml'}", f"--config={tmp_path / 'mine.yaml'}",
        "--model.network.width=1", "--data.batch_size=8", "--data.val_size=10", f"--runs_dir={tmp_path}",
        "--test_after_fit=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=1",
        "--ramp.phases=[{epochs: 1, end_eps: 16/255}]", "--curve.num_images=0", "--images.num_images=0",
    ]  # fmt: skip


def test_two_lines_put_a_folder_in_the_place_of_cifar10(fast_16: list[str], tmp_path: Path) -> None:
    main(fast_16)
    data = yaml.safe_load((tmp_path / "cifar10_fast_16/fit-0/config.yaml").read_text())["data"]
    assert data["class_path"].endswith("ImageFolderDataModule")
    assert {"max_shift": 4, "flip": True, "drop_last": True}.items() <= data["init_args"].items()


def test_a_network_with_another_number_of_classes_is_refused_in_one_line(fast_16: list[str], capfd: Any) -> None:
    with pytest.raises(SystemExit):
        main([*fast_16, "--model.network.num_classes=12"])
    assert "the network has 12 classes, the data 10 (class 0, " in capfd.readouterr().err
