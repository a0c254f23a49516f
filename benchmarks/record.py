"""JSON records of runs: result, command, seed, wall time, code, versions and machine."""

import argparse
import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rampart.files import provenance


def new_file(text: str) -> Path:
    """Parse a command-line argument that names a file to write.

    Raises:
        argparse.ArgumentTypeError: If the file exists: a record is never overwritten.
    """
    if Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} exists; give another file, or delete this one first")
    return Path(text)


class Record:
    """JSON file of one run. Create it when the computation starts: it starts the clock and describes the machine.

    Args:
        file: File to write; None only prints.
        seed: Seed of all random numbers.
        command: Words of the command; those of this process if None.

    Raises:
        FileExistsError: If the file exists: a record is never overwritten.
    """

    def __init__(self, file: Path | None, seed: int, command: list[str] | None = None) -> None:
        if file is not None:
            _refuse_existing(file)
        self._file, self._start = file, time.monotonic()
        words = command or ["python", *sys.orig_argv[1:]]
        # Paths of this machine mean nothing elsewhere.
        self._head = {"command": shlex.join(re.sub(r"(^|=)/(\S*/)?", r"\1", word) for word in words), "seed": seed}
        self._tail = provenance()

    def write(self, result: Mapping[str, Any]) -> None:
        """Write the result so far, in place of what this run wrote before; make parent folders."""
        if self._file is None:
            return
        seconds = {"wall_seconds": round(time.monotonic() - self._start, 1)}
        _write(self._file, self._head | dict(result) | seconds | self._tail)

    def show(self, result: Mapping[str, Any]) -> None:
        """Print the result as JSON, and write it."""
        print(json.dumps(result, indent=2))
        self.write(result)


def write_json(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result that describes its own run; make parent folders.

    Raises:
        FileExistsError: If the file exists.
    """
    _refuse_existing(file)
    _write(file, result)


def describe_file(path: Path | str) -> dict[str, str]:
    """Return the name and the SHA-256 of a weights file, for a record."""
    return {"weights": Path(path).name, "sha256": hash_file(path)}


def hash_file(path: Path | str) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _refuse_existing(file: Path) -> None:
    if file.exists():
        raise FileExistsError(f"{file} exists; give another file, or delete this one first")


def _write(file: Path, result: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
