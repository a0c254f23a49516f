"""Files that are written whole or not at all."""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file under another name and rename it, so that neither a kill nor a full disk leaves a broken file.

    Args:
        path: File to write; an earlier one is replaced.
        content: Bytes, or text that is written as UTF-8 without a change of line ends.

    Raises:
        OSError: If the disk is full or the folder not writable; the message names the file.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror or error}; {len(data):,} bytes): "
            "an earlier file there is unchanged; free disk space, or choose another --runs_dir"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished temporary files of killed processes on this machine."""
    for file in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        found = re.search(r"\.(\d+)\.tmp$", file.name)
        if found and not _is_alive(int(found[1])):
            with suppress(OSError):  # it belongs to another user
                file.unlink()


def _sync_folder(folder: Path) -> None:
    """Write a rename to disk, so that it survives a loss of power."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems do not support it
        pass
    finally:
        os.close(descriptor)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
