"""Recreation of data loaders by Lightning, with another sampler."""

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.connectors.data_connector import _DataConnector
from pytorch_lightning.trainer.states import RunningStage
from torch.utils.data import DataLoader, SequentialSampler

from rampart.attacks.random import run_seed, seed_torch


class LoaderConnector(_DataConnector):
    """Lightning's data connector, for loaders with positional arguments too, such as ``DataLoader(data, 10)``.

    Lightning recreates a loader to record the indices of the images in each batch of ``predict``, and to give each of
    several processes its share. Without this class it passes positional arguments twice, by position and by name.
    """

    def _prepare_dataloader(self, dataloader: object, shuffle: bool, mode: RunningStage) -> object:
        if mode == RunningStage.TRAINING:
            seed_epoch(self.trainer)
        if not isinstance(dataloader, DataLoader):
            return dataloader
        _name_arguments(dataloader)
        try:
            return super()._prepare_dataloader(dataloader, shuffle, mode)
        except (MisconfigurationException, TypeError) as error:
            whole = isinstance(dataloader.sampler, SequentialSampler) and not dataloader.drop_last
            if self.trainer.world_size == 1 and whole:  # The original is enough: all images, in order.
                return dataloader
            raise ValueError(
                f"{type(dataloader).__name__} can't be recreated with another sampler, which "
                f"{mode.dataloader_prefix}_dataloader needs here: let its __init__ pass **kwargs to DataLoader "
                "without setting batch_size, shuffle, sampler or drop_last, or return a DataLoader"
            ) from error


def seed_epoch(trainer: Trainer) -> None:
    """Seed torch for an epoch's order by run seed and epoch alone: the same in all processes and in a resumed run."""
    seed_torch(trainer.strategy.root_device, "loaders", run_seed(trainer), trainer.current_epoch)


def _name_arguments(dataloader: object) -> None:
    """Convert the positional arguments that Lightning has recorded for a loader to keyword arguments."""
    names, values = getattr(dataloader, "__pl_saved_arg_names", ()), getattr(dataloader, "__pl_saved_args", ())
    if values and len(names) == len(values):
        named = dict(zip(names, values, strict=True)) | getattr(dataloader, "__pl_saved_kwargs", {})
        for attribute, value in (("args", ()), ("arg_names", ()), ("kwargs", named)):
            object.__setattr__(dataloader, f"__pl_saved_{attribute}", value)
