"""Full float32 precision for reported numbers."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

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
    # Always legacy settings first: setting one changes the newer ones behind it.
    legacy_matmul = legacy_cudnn = None
    with suppress(RuntimeError):  # raised if the process has used the newer interface
        legacy_matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        legacy_cudnn = torch.backends.cudnn.allow_tf32
    before = [torch._C._get_fp32_precision_getter(*operation) for operation in _OPERATIONS]
    available = torch.amp.is_autocast_available(device_type)
    try:
        _set(legacy_matmul and "highest", None if legacy_cudnn is None else False, ["ieee"] * len(_OPERATIONS))
        with torch.autocast(device_type, enabled=False) if available else nullcontext():
            yield
    finally:
        _set(legacy_matmul, legacy_cudnn, before)


def tf32_allowed() -> bool:
    """Return True if matrix products or convolutions on a GPU may be rounded to TF32."""
    operations = [operation for operation in _OPERATIONS if operation[0] == "cuda"]
    return "tf32" in [torch._C._get_fp32_precision_getter(*operation) for operation in operations]


def _set(legacy_matmul: str | None, legacy_cudnn: bool | None, precisions: list[str]) -> None:
    if legacy_matmul is not None:
        torch.set_float32_matmul_precision(legacy_matmul)
    if legacy_cudnn is not None:
        torch.backends.cudnn.allow_tf32 = legacy_cudnn
    for operation, precision in zip(_OPERATIONS, precisions, strict=True):
        torch._C._set_fp32_precision_setter(*operation, precision)
