"""Floating-point precision of float32 operations: full float32 for reported numbers, TF32 where it is allowed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
from torch import Tensor

Radius = TypeVar("Radius", float, Tensor)

_OPERATIONS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Compute float32 operations inside the context in full float32: without autocast, TF32 or bfloat16 products.

    Lower precision changes logits by more than a small eps does. torch's settings apply to the whole process, on every
    backend; they are restored afterwards, even after an exception. torch has an older and a newer interface to them,
    and reading one after setting the other raises an error. Both are set here, so code inside may read either.

    Args:
        device_type: Device type of the network, such as ``"cuda"``, on which autocast is disabled.
    """
    with _changed("highest", False, dict.fromkeys(_OPERATIONS, "ieee")), without_autocast(device_type):
        yield


def widen_for_rounding(eps: Radius) -> Radius:
    """Return a radius on the pixel scale with a tolerance for rounding: evaluations accept adversarial images up to it.

    Certificates are of the same larger ball, so that they speak of every image that an evaluation accepts.
    """
    return eps * (1 + 1e-5) + 1e-6


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context manager that disables autocast on a device type, if torch has autocast for it."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside the context, for float32 products and convolutions on a GPU.

    TF32 keeps 10 of float32's 23 bits of mantissa. Like :func:`full_float32`, this sets torch's settings of the whole
    process and restores them.

    Args:
        allowed: Allow it.
    """
    precision = "tf32" if allowed else "ieee"
    on_gpu = {operation: precision for operation in _OPERATIONS if operation[0] == "cuda"}
    with _changed("high" if allowed else "highest", allowed, on_gpu):
        yield


def tf32_allowed() -> bool:
    """Return True if matrix products or convolutions on a GPU may be rounded to TF32."""
    return "tf32" in [_get(operation) for operation in _OPERATIONS if operation[0] == "cuda"]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype to which autocast casts on this type of device; None without autocast."""
    enabled = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def float32_precisions() -> tuple[str, ...]:
    """Return torch's precision of float32 operations, for each backend and kind of operation."""
    return tuple(_get(operation) for operation in _OPERATIONS)


@contextmanager
def _changed(matmul: str, cudnn: bool, precisions: dict[tuple[str, str], str]) -> Iterator[None]:
    """Change the older settings, for matrix products and cuDNN, and the newer ones per operation; restore them."""
    # Always legacy settings first: setting one changes the newer ones behind it.
    legacy_matmul = legacy_cudnn = None
    with suppress(RuntimeError):  # raised if the process has used the newer interface
        legacy_matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        legacy_cudnn = torch.backends.cudnn.allow_tf32
    before = {operation: _get(operation) for operation in _OPERATIONS}
    try:
        _set(legacy_matmul and matmul, None if legacy_cudnn is None else cudnn, before | precisions)
        yield
    finally:
        _set(legacy_matmul, legacy_cudnn, before)


def _get(operation: tuple[str, str]) -> str:
    precision: str = torch._C._get_fp32_precision_getter(*operation)
    return precision


def _set(legacy_matmul: str | None, legacy_cudnn: bool | None, precisions: dict[tuple[str, str], str]) -> None:
    if legacy_matmul is not None:
        torch.set_float32_matmul_precision(legacy_matmul)
    if legacy_cudnn is not None:
        torch.backends.cudnn.allow_tf32 = legacy_cudnn
    for operation, precision in precisions.items():
        torch._C._set_fp32_precision_setter(*operation, precision)
