"""Read files of weights without executing anything in them."""

import io
import os
import stat
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rampart.files import inert_pickle
from rampart.files.text import printable_key

ALLOWED = "allowed: a Lightning checkpoint, a state_dict (.pth), a TorchScript file, .safetensors or .npz"
STATE_DICT = (
    "convert it to a state_dict where its code is installed: "
    "import torch; network = torch.load('FILE', weights_only=False); torch.save(network.state_dict(), 'weights.pth')"
)
_OLD_TORCH = (
    b"\x80\x02\x8a\nl\xfc\x9cF"  # beginning of files by torch.save before 1.6; other pickles are by pickle.dump
)
# First bytes of files that users mistake for weights, and their explanation.
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras), which is not read: save its arrays with numpy.savez"),
    (b"\x93NUMPY", "is one numpy array: save all arrays by parameter name with numpy.savez"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!doctype html", "is a web page: the download of the weights has failed"),
    (b"<html", "is a web page: the download of the weights has failed"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"GGUF", "is a GGUF file, which is not read: its weights are quantised"),
)
_OTHER_SUFFIXES = {
    ".index.json": "is the index of a model in several files: load them in the library that wrote them and save one "
    "state_dict with torch.save",
    ".onnx": "is an ONNX graph, whose weights have lost their names: take the file that it was exported from",
    ".msgpack": "is a Flax file, which is not read: save its arrays under PyTorch's names with numpy.savez",
    ".index": "is part of a TensorFlow checkpoint, which is not read: save its arrays with numpy.savez",
    ".data-00000-of-00001": "is part of a TensorFlow checkpoint, which is not read: save its arrays with numpy.savez",
}
_FOLDERS = {
    ".metadata": "a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
    "weights.pth makes one file of it",
    "saved_model.pb": "a TensorFlow model, which is not read",
    "_METADATA": "an Orbax checkpoint (JAX), which is not read",
    "latest": "a DeepSpeed checkpoint: run the zero_to_fp32.py in it",
    "model.safetensors": "a model's folder: give the file model.safetensors in it",
    "pytorch_model.bin": "a model's folder: give the file pytorch_model.bin in it",
}


@dataclass(frozen=True)
class WeightsFile:
    """Content of a file of weights.

    Attributes:
        content: Tensors in plain containers; objects of other classes are :class:`inert_pickle.Unbuilt`.
        kind: Kind of file. ``torch`` is a file that ``torch.load`` with ``weights_only=True`` reads too.
    """

    content: Any
    kind: Literal["torch", "objects", "TorchScript", "safetensors", "numpy"]


def read_file(path: str | Path, network: nn.Module | None = None) -> WeightsFile:
    """Read a file of tensors in any of the known formats.

    Args:
        path: The file.
        network: The network to load. A compressed file that would unpack to much more than its size is refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of weights, is damaged, or calls a function.
    """
    path = check_readable(path)
    needed = 0 if network is None else sum(_count_bytes(value) for value in network.state_dict().values())
    with path.open("rb") as file:
        start = file.read(32)
    for beginning, problem in _OTHER_FORMATS:
        if start.lower().startswith(beginning.lower()):
            raise ValueError(f"{path} {problem}; {ALLOWED}")
    try:
        return _read(path, needed)
    except inert_pickle.CallRefused as error:
        raise ValueError(
            f"{path} holds a call of {printable_key(str(error))}, whose loading would execute code: refused, nothing "
            f"was executed; if you trust it, {STATE_DICT}"
        ) from error
    except NotReadError as error:
        raise ValueError(f"{path} {error}; {ALLOWED}") from error
    except Exception as error:  # Arbitrary bytes can raise any exception.
        problem = "is damaged or truncated, or not a checkpoint: refused, nothing in it was executed"
        problem = next((text for end, text in _OTHER_SUFFIXES.items() if path.name.endswith(end)), problem)
        raise ValueError(f"{path} {problem if start else 'is empty: refused'}; {ALLOWED}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file from which a run can be resumed; ``torch.load`` with ``weights_only=True`` must be able to read it.

    Args:
        path: A Lightning checkpoint, a plain state_dict or safetensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is no checkpoint, or holds objects whose loading would run code.
    """
    file = read_file(path)
    if file.kind == "objects":
        raise ValueError(
            f"{path} holds objects whose loading would execute code: refused, nothing was executed; "
            "a new run can start from its weights alone, with --ramp.init_from"
        )
    if not isinstance(file.content, dict):
        raise ValueError(f"{path} holds a {type(file.content).__name__}, not a checkpoint; {ALLOWED}")
    return file.content


class NotReadError(ValueError):
    """Raised for a file of a known format that is not read; the message gives the reason."""


def check_readable(path: str | Path) -> Path:
    """Return the path of a file that can be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, an address, or not readable; the message gives the remedy.
    """
    if not str(path):
        raise ValueError(f"the path of the weights is empty; {ALLOWED}")
    if "://" in str(path):
        raise ValueError(f"{path} is an address, and weights are read from files: download it and give the file's path")
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        broken = f": it is a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else ""
        raise FileNotFoundError(f"checkpoint not found: {path}{broken}") from error
    if stat.S_ISDIR(mode):
        known = next((text for name, text in _FOLDERS.items() if (path / name).exists()), "")
        raise ValueError(f"{path} is a folder{known and f', {known}'}: give one file; {ALLOWED}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not an ordinary file (a pipe, a device or a socket); {ALLOWED}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} can't be read: Permission denied")
    return path


def _read(path: Path, needed: int) -> WeightsFile:
    with path.open("rb") as file:
        start = file.read(10)
    if start[8:] == b'{"':
        return WeightsFile(dict(load_file(path)), "safetensors")
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path, needed)
    if tarfile.is_tarfile(path):
        # torch.load would unpack it to disk.
        raise NotReadError("is a tar archive: refused; unpack it, or save it again if torch.save of 2016 wrote it")
    if start.startswith(b"\x80") and not start.startswith(_OLD_TORCH):
        with path.open("rb") as file:
            return WeightsFile(inert_pickle.load(file), "objects")
    return _torch_load(path)


def _read_zip(path: Path, needed: int) -> WeightsFile:
    with zipfile.ZipFile(path) as archive:
        unpacked, on_disk = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        if unpacked > max(2 * on_disk, 8 * needed + 2**24):
            needs = f", and the network has {needed:,}" if needed else ""
            raise NotReadError(f"has {on_disk:,} bytes and would unpack to {unpacked:,}{needs}: refused, not unpacked")
        names = [info.filename for info in archive.infolist()]
        if all(name.endswith(".npy") for name in names):
            return WeightsFile(_read_arrays(path), "numpy")
        if not any(name.endswith("/data.pkl") for name in names):
            raise NotReadError(
                "is a zip archive and not one of torch.save: refused. Of a torch.export program (.pt2) take the "
                "weights with torch.save(torch.export.load('FILE').state_dict, 'weights.pth'); unpack any other"
            )
        if not any(name.endswith("/constants.pkl") for name in names):
            return _torch_load(path)
        # Without its code and constants a TorchScript file holds only tensors and objects.
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as plain:
            for name in names:
                if "/code/" not in name and not name.endswith("/constants.pkl"):
                    plain.writestr(name, archive.read(name))
    copy.seek(0)
    return WeightsFile(_load_quietly(copy, pickle_module=inert_pickle, weights_only=False), "TorchScript")


def _torch_load(path: Path) -> WeightsFile:
    try:
        return WeightsFile(_load_quietly(path, weights_only=True), "torch")
    except Exception as error:
        if "unsupported " not in str(error).lower():
            raise
        return WeightsFile(_load_quietly(path, pickle_module=inert_pickle, weights_only=False), "objects")


def _load_quietly(file: Path | io.BytesIO, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(file, io.BytesIO):
            return torch.load(file, map_location="cpu", **how)
        with file.open("rb") as opened:  # opened here, so that torch.load ignores the suffix of the name
            return torch.load(opened, map_location="cpu", **how)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        try:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (TypeError, ValueError) as error:
            raise NotReadError(
                f"holds something that is not an array of numbers: refused, nothing was unpickled ({error})"
            ) from error


def _count_bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) else 0
