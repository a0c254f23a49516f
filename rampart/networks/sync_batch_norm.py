"""BatchNorm whose statistics in train mode are those of all processes."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.kernels import count_ranks, sync_batch_norm


class SyncBatchNorm(_BatchNorm):
    """torch's SyncBatchNorm, also on CPUs and for interval bounds.

    It computes tensors on a GPU as torch's does. On a CPU, where torch's refuses to work, and with bounds, it uses
    :func:`rampart.kernels.sync_batch_norm`. In eval mode and in one process it is BatchNorm. Names of parameters and
    buffers are those of BatchNorm. It is no subclass of torch's, which DistributedDataParallel refuses on CPUs.
    """

    process_group = None

    def forward(self, input: Any) -> Any:
        """Return the normalised batch ``(N, C, ...)``."""
        if not self.training or count_ranks() == 1:
            return super().forward(input)
        if isinstance(input, Tensor) and input.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]  # has its attributes
        self._check_input_dim(input)
        running_mean, running_var, momentum = None, None, self.momentum or 0.0
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            running_mean, running_var = self.running_mean, self.running_var
            if self.momentum is None:  # the mean of all batches
                momentum = 1 / int(self.num_batches_tracked)
        return sync_batch_norm(input, running_mean, running_var, self.weight, self.bias, True, momentum, self.eps)

    def _check_input_dim(self, input: Any) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")

    def _check_non_zero_input_channels(self, input: Any) -> None:
        """Check nothing; torch's forward calls it."""


def sync_layers(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm of a network by :class:`SyncBatchNorm`, which shares all of its attributes.

    Args:
        module: Network, changed in place unless it is a BatchNorm itself.

    Returns:
        The network.
    """
    if isinstance(module, _BatchNorm):
        if isinstance(module, SyncBatchNorm):
            return module
        synced = SyncBatchNorm.__new__(SyncBatchNorm)
        synced.__dict__.update(module.__dict__, replaced=module)
        return synced
    for name, child in module.named_children():
        module.add_module(name, sync_layers(child))
    return module


def restore_layers(module: nn.Module) -> nn.Module:
    """Undo :func:`sync_layers`: the earlier layers return, with the attributes of now."""
    if isinstance(module, SyncBatchNorm) and "replaced" in module.__dict__:
        layer: nn.Module = module.__dict__["replaced"]
        layer.__dict__.update({name: value for name, value in module.__dict__.items() if name != "replaced"})
        return layer
    for name, child in module.named_children():
        module.add_module(name, restore_layers(child))
    return module
