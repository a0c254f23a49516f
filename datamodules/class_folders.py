"""Image files in one folder per class, found and checked."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datamodules.image_files import SUFFIXES, is_image

PARTS = ("train", "val", "test")
JUNK = frozenset((
    ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".directory", ".gitkeep", "__macosx", "@eadir",
    ".ipynb_checkpoints",
))  # fmt: skip
"""Lower-case names of files and folders that systems and tools add; names that begin with ``._`` are ignored too."""
SHOWN = 5  # names in a message


class Files(NamedTuple):
    """Paths of images and the zero-based class of each, by class and, within a class, by path."""

    paths: list[str]
    labels: list[int]


class ClassFolders(NamedTuple):
    """Names of the classes, sorted by their characters' numbers, and the files of each part that has a folder."""

    classes: tuple[str, ...]
    parts: dict[str, Files]


def find_files(data_dir: Path) -> ClassFolders:
    """Find the images of a folder.

    The folder holds ``train``, ``val`` or ``test``, each with one folder per class; or the class folders themselves,
    whose images are then those of ``train``. Classes may have subfolders and be links. Files beside the folders of
    classes are ignored unless they are images.

    Args:
        data_dir: The folder.

    Returns:
        Classes and files.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no classes or a single one, the parts have different classes, a class has no images,
            or there are images outside of the class folders or other files in them; in one line.
    """
    if not data_dir.is_dir():
        what = "is not a folder" if data_dir.exists() else "does not exist"
        raise FileNotFoundError(f"data.data_dir {data_dir} {what}: it must hold train/CLASS/*.png or CLASS/*.png")
    folders = {part: data_dir / part for part in _find_parts(data_dir)} or {"train": data_dir}
    classes = {part: _find_classes(folder) for part, folder in folders.items()}
    first, *others = folders
    for part in others:
        if differences := [
            f"only in {here}: {_list_names(sorted(classes[here].keys() - classes[there].keys()))}"
            for here, there in ((first, part), (part, first))
            if classes[here].keys() - classes[there].keys()
        ]:
            raise ValueError(
                f"{folders[first]} and {folders[part]} must have the same classes; {'; '.join(differences)}"
            )
    names = tuple(classes[first])
    if len(names) < 2:
        raise ValueError(f"{folders[first]} holds one class folder, {names[0]}: a classifier needs two classes or more")
    parts = {part: _find_images(list(classes[part].values())) for part in folders}
    return ClassFolders(names, parts)


def _find_parts(data_dir: Path) -> list[str]:
    """Return the parts that have folders; none if the folders are classes, also of names such as ``train``."""
    held = {entry.name for entry in _list_entries(data_dir) if entry.is_dir()}
    parts = [part for part in PARTS if part in held]
    only_parts = bool(held) and held <= set(PARTS)
    if only_parts or any(entry.is_dir() for part in parts for entry in _list_entries(data_dir / part)):
        return parts
    return []


def _find_classes(folder: Path) -> dict[str, Path]:
    """Return the class folders of a part by name, in order."""
    entries = _list_entries(folder)
    classes = {unicodedata.normalize("NFC", entry.name): Path(entry.path) for entry in entries if entry.is_dir()}
    images = [entry.name for entry in entries if not entry.is_dir() and is_image(entry.name)]
    if not classes:
        held = _list_names([entry.name for entry in entries]) or "nothing"
        raise ValueError(f"{folder} holds no class folders: it must hold one folder of images per class, got {held}")
    if images:
        raise ValueError(
            f"{folder} holds images outside of its class folders: move {_list_names(images)} into one of them, or away"
        )
    return dict(sorted(classes.items()))


def _find_images(classes: list[Path]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        found = list(_walk(str(folder), frozenset()))
        if not found:
            raise ValueError(f"class folder {folder} holds no images: add some, or remove it from all parts")
        paths += found
        labels += [label] * len(found)
    return Files(paths, labels)


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Yield the images in a folder and its subfolders, in order."""
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} is a link to a folder that holds it: remove the link")
    for entry in _list_entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, above | {real})
        elif is_image(entry.name):
            yield entry.path
        else:
            endings = ", ".join(sorted(SUFFIXES))
            raise ValueError(f"{entry.path} is not an image ({endings}): move it out of the class folder")


def _list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without the files that systems add."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if entry.name.lower() not in JUNK and not entry.name.startswith("._")]
    return sorted(kept, key=lambda entry: entry.name)


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
