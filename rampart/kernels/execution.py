"""Execution options: the way networks are executed on a device, which does not change what they compute."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from rampart.kernels.precision import allow_tf32, full_float32, without_autocast

MemoryFormat: TypeAlias = Literal["contiguous", "channels_last"]
Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Execution:
    """Options of how networks are executed: recorded steps, compilation, memory format and precision.

    The defaults suit every device. Recorded and compiled forms are separate from the network: its parameters,
    state_dict and hooks are unchanged. A network that can't be recorded or compiled is executed as usual, and one
    warning says why.

    Attributes:
        capture: Record the steps of an attack as CUDA graphs and replay them, so that the GPU does not wait for
            launches. None: on NVIDIA GPUs.
        compile: Compile networks with ``torch.compile``. It takes from ten seconds to minutes and pays in long runs.
        memory_format: Order of the numbers of images and activations in memory. None: ``channels_last`` for networks
            with 2D convolutions on an accelerator, torch's default on a CPU.
        tf32: Allow TF32 for float32 products in training, on devices that have it: 10 bits of mantissa. None: allow it.
            Evaluations never use it.
        attack_precision: Precision of the attack in training; that of the training step if None. Evaluations attack in
            float32.

    Raises:
        ValueError: If a value is not allowed.
    """

    capture: bool | None = None
    compile: bool = False
    memory_format: MemoryFormat | None = None
    tf32: bool | None = None
    attack_precision: Precision | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("memory_format", ("contiguous", "channels_last")),
            ("attack_precision", ("float32", "tf32", "bfloat16")),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"execution.{name} must be one of {', '.join(allowed)}, got {value!r}")

    @contextmanager
    def training(self, device_type: str) -> Iterator[None]:
        """Execute networks with these options inside the context, with TF32 if it is allowed.

        Args:
            device_type: Type of the networks' device, such as ``"cpu"``.
        """
        with _using(self), nullcontext() if device_type == "cpu" else allow_tf32(self.tf32 is not False):
            yield

    @contextmanager
    def evaluation(self, device_type: str) -> Iterator[None]:
        """Execute networks with these options inside the context, in float32 without TF32 and autocast.

        Args:
            device_type: Type of the networks' device.
        """
        with _using(replace(self, tf32=False, attack_precision=None)), full_float32(device_type):
            yield

    @contextmanager
    def attack(self, device_type: str) -> Iterator[None]:
        """Set the precision of an attack inside the context.

        Args:
            device_type: Type of the networks' device.
        """
        if self.attack_precision is None:
            yield
        elif self.attack_precision == "bfloat16":
            with torch.autocast(device_type, torch.bfloat16):
                yield
        else:
            with without_autocast(device_type), allow_tf32(self.attack_precision == "tf32"):
                yield


_CURRENT: ContextVar[Execution] = ContextVar("execution", default=Execution())  # noqa: B039 - frozen


def current_execution() -> Execution:
    """Return the options of the innermost context; the defaults outside of any."""
    return _CURRENT.get()


@contextmanager
def _using(execution: Execution) -> Iterator[None]:
    token = _CURRENT.set(execution)
    try:
        yield
    finally:
        _CURRENT.reset(token)
