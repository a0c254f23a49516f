"""The files that keep what an attack made of a batch, and the locks that share the batches among processes."""

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class ResultCache:
    """A folder of tensors by name; every file in it is whole, and anyone whom the umask lets may read it.

    Args:
        folder: Made if need be. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def lock(self, batch: int, wait: bool) -> contextlib.AbstractContextManager[object] | None:
        """Keep other processes from a batch until the context is left or this process dies.

        Args:
            batch: Its number.
            wait: For a process that has it; otherwise return None where another has it.
        """
        if self.folder is None:
            return contextlib.nullcontext()
        try:
            return FileLock(self.folder / f"{batch:05}.lock").acquire(blocking=wait)
        except Timeout:
            return None

    def read(self, name: str, device: str) -> dict[str, Tensor] | None:
        """Read the tensors of that name; None if there are none, or their file is damaged or another's."""
        if self.folder is not None and (path := self._path(name)).is_file():
            with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt", device=device) as file:
                if file.metadata() == self._place(name):
                    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        return None

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write tensors under a name, whole or not at all."""
        if self.folder is not None:
            path = self._path(name)
            unfinished = path.with_suffix(".unfinished")
            with unfinished.open("wb") as file:  # safetensors' own save_file lets no one but the user read it
                file.write(save(tensors, self._place(name)))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)

    def _place(self, name: str) -> dict[str, str]:
        """Return what a file says of itself: one that found nothing is believed only where it was written."""
        assert self.folder is not None
        return {"search": self.folder.name, "name": name}

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"
