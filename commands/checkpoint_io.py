"""Checkpoint files: written so that no kill leaves a broken one, read without executing anything."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol

from rampart.files.weight_files import read_checkpoint
from rampart.files.whole_file import remove_leftovers, write_whole


class WholeFileIO(TorchCheckpointIO):
    """Write each checkpoint to a temporary file and rename it; read tensors only; remove only files that it wrote."""

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace ``path`` by the new file, or leave it unchanged.

        Raises:
            OSError: If the disk is full or the folder not writable; the message names the file.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(path, content.getbuffer())
        self._written.add(path.absolute())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,  # noqa: ARG002 - Lightning's signature; weights are moved later
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing is unpickled, also with ``weights_only=False``."""
        remove_leftovers(Path(path).parent)
        return read_checkpoint(path)

    def adopt(self, files: Iterable[Path]) -> None:
        """Treat files of an earlier process of this run as written by this process."""
        self._written |= {file.absolute() for file in files}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file that this process has written, and no other."""
        if Path(path).absolute() in self._written:
            self._written.discard(Path(path).absolute())
            Path(path).unlink(missing_ok=True)


def find_newest_readable(files: Iterable[Path], keys: Iterable[str] = ()) -> Path | None:
    """Return the readable checkpoint with the most training steps; None if no file is readable.

    Args:
        files: Files to choose from.
        keys: Keys that the checkpoint must have.
    """
    reached: list[tuple[int, float, Path]] = []
    for file in files:
        try:
            checkpoint = read_checkpoint(file)
            if all(key in checkpoint for key in keys):
                reached.append((int(checkpoint["global_step"]), file.stat().st_mtime, file))
        except (KeyError, OSError, TypeError, ValueError):
            continue
    return max(reached)[2] if reached else None
