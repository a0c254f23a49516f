"""Lightning's plugin that shares BatchNorm's statistics between processes, on all devices."""

from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from rampart.networks import restore_layers, sync_layers


class LayerSync(TorchSyncBatchNorm):
    """Share the statistics of BatchNorm in training between all processes; see :class:`rampart.networks.SyncBatchNorm`.

    ``--trainer.sync_batchnorm true`` uses it. A custom trainer is given ``sync_batchnorm=True, plugins=[LayerSync()]``.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers of a module at the start of a training."""
        return sync_layers(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the earlier layers at its end."""
        return restore_layers(model)
