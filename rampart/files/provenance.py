"""Provenance of results: hashes of weights, code version, package versions and machine."""

import hashlib
import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from rampart.kernels import current_execution, tf32_allowed
from rampart.kernels.recording import RECORDERS


def provenance(
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    world_size: int | None = None,
    trainer_precision: str | None = None,
) -> dict[str, Any]:
    """Describe the code, the machine and the arithmetic that a result was computed with.

    Call it in the same context as the computation, such as :func:`rampart.kernels.precision.full_float32`: it records
    torch's current settings.

    Args:
        device: Device of the result. If None, a GPU if there is one, else the CPU.
        dtype: Dtype of the logits.
        world_size: Number of processes; read from torch or the environment if None.
        trainer_precision: Precision setting of the trainer, if there is one.

    Returns:
        ``commit`` (followed by ``+`` if files differ from it; None outside a git checkout of Rampart),
        ``versions`` of Python and the main packages, ``processor``, ``gpus``, ``threads``, ``device``, ``world_size``,
        ``precision`` of the logits, ``tf32`` (whether products may be rounded to it), ``trainer_precision``,
        ``deterministic``, and ``execution``, the current options of :class:`rampart.kernels.Execution` with the
        device's defaults in place of None.
    """
    where = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    packages = ("torch", "torchvision", "pytorch-lightning", "torchmetrics")
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "processor": _processor(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "device": where,
        "world_size": _world_size() if world_size is None else world_size,
        "precision": str(dtype).removeprefix("torch."),
        "tf32": tf32_allowed(),
        "trainer_precision": trainer_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "execution": _describe_execution(torch.device(where).type),
    }


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of the values of tensors, as hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe_execution(device_type: str) -> dict[str, Any]:
    options = current_execution()
    capture = options.capture is not False and device_type in RECORDERS
    memory_format = options.memory_format or ("contiguous" if device_type == "cpu" else "channels_last")
    return asdict(options) | {"capture": capture, "memory_format": memory_format}


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _commit() -> str | None:
    try:
        # Fails if this file is not tracked: Rampart is then installed inside another project's repository.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    command = ["git", *arguments]
    return subprocess.run(command, cwd=here, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
