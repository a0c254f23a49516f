"""Copy of a small tensor on the host, made without a wait for the device."""

import torch
from torch import Tensor


class HostCopy:
    """Copy of a small tensor on the host, made without a wait for the device.

    Args:
        values: ``(M,)``, float.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """Return the values; wait if the device has not computed them yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(value) for value in self._values.tolist()]
