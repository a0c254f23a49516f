"""Placement of images and batches on devices."""

from pathlib import Path

import torch
from torch import Tensor

MAX_SHARE = 0.25  # of the free memory, so that most is left to the network
# Files of a container's or job's limit, its use and, in its statistics, the cached files, which can be dropped: version
# 2 and version 1 of Linux's control groups.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def move_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. The host does not wait for the copy to an accelerator, where its backend allows it.

    Args:
        tensor: Any tensor.
        device: Device of the result.
    """
    if device.type in ("cpu", "mps"):  # The values could be read before they have arrived.
        return tensor.to(device)
    if tensor.device.type == "cpu" and _is_accelerator(device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def leaves_room(device: torch.device, *tensors: Tensor) -> bool:
    """Return True if tensors would take at most a quarter of a device's free memory.

    Args:
        device: Device that may hold them. False if it is a CPU, or if its backend does not tell the free memory.
        tensors: Tensors on any device.
    """
    free = free_memory(device)
    return free is not None and sum(tensor.nbytes for tensor in tensors) <= MAX_SHARE * free


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator's memory; None if it is a CPU or its backend does not tell them."""
    if not _is_accelerator(device):
        return None
    mem_get_info = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if mem_get_info is None else int(mem_get_info(device)[0])


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of main memory that a process can still use, within its container's limit; None if not Linux.

    Args:
        root: Folder that has ``proc`` and ``sys``.
    """
    try:
        free = 1024 * _read_number(root / "proc/meminfo", "MemAvailable:")
    except (OSError, ValueError, StopIteration):
        return None
    for limit, used, statistics, cached in _GROUPS:
        group = root / "sys/fs/cgroup"
        try:
            held = int((group / used).read_text()) - _read_number(group / statistics, cached)
            free = min(free, int((group / limit).read_text()) - held)
        except (OSError, ValueError, StopIteration):  # no such group, or no limit
            continue
    return max(0, free)


def _read_number(file: Path, name: str) -> int:
    lines = (line.split() for line in file.read_text().splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)


def _is_accelerator(device: torch.device) -> bool:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type == device.type
