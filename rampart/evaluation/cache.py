"""Cached results of attacks on batches, and locks that let several processes share the batches."""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rampart.files.whole_file import write_whole


class ResultCache:
    """A folder of named tensor files. Files are written atomically, with the permissions that the umask allows.

    Args:
        folder: Folder of the files, created if needed. If None, nothing is cached.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def lock(self, batch: int, wait: bool) -> contextlib.AbstractContextManager[object] | None:
        """Try to lock a batch. The lock ends with the context or with the process.

        Args:
            batch: Zero-based number of the batch.
            wait: Wait while another process holds the lock. If False, return None instead.
        """
        if self.folder is None:
            return contextlib.nullcontext()
        try:
            return FileLock(self.folder / f"{batch:05}.lock").acquire(blocking=wait)
        except Timeout:
            return None

    def read(self, name: str, device: str) -> dict[str, Tensor] | None:
        """Return the tensors stored under a name; None if the file is missing, damaged or a copy of another file."""
        if self.folder is not None and (path := self._path(name)).is_file():
            with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt", device=device) as file:
                if file.metadata() == self._metadata(name):
                    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        return None

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write tensors under a name, atomically."""
        if self.folder is not None:
            # Not by safetensors' save_file, which ignores the umask: only the user may read its files.
            write_whole(self._path(name), save(tensors, self._metadata(name)))

    def _metadata(self, name: str) -> dict[str, str]:
        """Return the metadata that identify a file: copies of other files must not be read as this one."""
        assert self.folder is not None
        return {"search": self.folder.name, "name": name}

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"
