"""Files that are written whole or not at all."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rampart.files import write_whole


def test_a_full_disk_leaves_the_earlier_file_and_names_it(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "folder" / "report.json"
    write_whole(path, "eps: 8/255 \u2264 1\r\n")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"report\.json could not be written \(No space left on device; 4 bytes\): an ea"):
        write_whole(path, b"half")
    assert path.read_bytes() == "eps: 8/255 \u2264 1\r\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    left, running, other = (
        tmp_path / f".a.json.{name}.tmp" for name in (f"{host}.{ended.pid}", f"{host}.{os.getpid()}", "elsewhere.1")
    )
    for file in (left, running, other):
        file.touch()
    write_whole(tmp_path / "b.json", "")
    assert {file.name for file in tmp_path.iterdir()} == {"b.json", running.name, other.name}
