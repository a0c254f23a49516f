"""The arithmetic that reported numbers are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

_OPERATIONS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Compute float32 operations in float32: without autocast, TF32 or bfloat16 products.

    A coarser arithmetic moves logits by more than a small eps does. The settings are those of the process, on every
    backend, and come back afterwards, also after an exception. torch has an older and a newer interface to them, and
    reading the one after setting the other raises an error; both are set here, so that code that runs inside may ask
    either.

    Args:
        device_type: Where the network is, such as ``"cuda"``; autocast is left there.
    """
    # Legacy settings first, each time: setting one changes the newer ones behind it.
    legacy_matmul = legacy_cudnn = None
    with suppress(RuntimeError):  # The process has used the newer interface.
        legacy_matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        legacy_cudnn = torch.backends.cudnn.allow_tf32
    before = [torch._C._get_fp32_precision_getter(*of) for of in _OPERATIONS]
    available = torch.amp.is_autocast_available(device_type)
    try:
        _set(legacy_matmul and "highest", None if legacy_cudnn is None else False, ["ieee"] * len(_OPERATIONS))
        with torch.autocast(device_type, enabled=False) if available else nullcontext():
            yield
    finally:
        _set(legacy_matmul, legacy_cudnn, before)


def tf32_allowed() -> bool:
    """Return whether products or convolutions on a GPU may be rounded to TF32."""
    return "tf32" in [torch._C._get_fp32_precision_getter(*of) for of in _OPERATIONS if of[0] == "cuda"]


def _set(legacy_matmul: str | None, legacy_cudnn: bool | None, precisions: list[str]) -> None:
    if legacy_matmul is not None:
        torch.set_float32_matmul_precision(legacy_matmul)
    if legacy_cudnn is not None:
        torch.backends.cudnn.allow_tf32 = legacy_cudnn
    for of, precision in zip(_OPERATIONS, precisions, strict=True):
        torch._C._set_fp32_precision_setter(*of, precision)
