"""Time, memory and random numbers of any device."""

import time
from collections.abc import Callable
from typing import Any

import torch


def choose_device() -> str:
    """Return the type of the accelerator; ``"cpu"`` if there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device != "cpu":
        torch.accelerator.synchronize()


def time_call(run: Callable[[], object], device: str) -> float:
    """Return the seconds of a call, until the device has finished its work."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def reset_peak_memory(device: str) -> None:
    """Forget the largest amount of allocated memory so far."""
    if reset := _memory_function(device, "reset_peak_memory_stats"):
        reset()


def peak_memory(device: str) -> float | None:
    """Return the largest amount of memory, in GiB, that torch's allocator has given out since the last reset.

    None for devices that do not count it.
    """
    count = _memory_function(device, "max_memory_allocated")
    return None if count is None else round(count() / 2**30, 3)


def _memory_function(device: str, name: str) -> Any:
    return None if device == "cpu" else getattr(torch.get_device_module(device), name, None)


def describe_device(device: str) -> str:
    """Return the name of the device."""
    if device == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name()) if name else device
