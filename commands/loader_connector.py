"""Ordinary loaders, however they were made, where Lightning has to make them anew."""

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.connectors.data_connector import _DataConnector
from pytorch_lightning.trainer.states import RunningStage
from torch.utils.data import DataLoader, SequentialSampler

from rampart.attacks.random import run_seed, seed_torch


class LoaderConnector(_DataConnector):
    """Lightning's, for loaders with positional arguments too, such as ``DataLoader(data, 10)``.

    To note which images a batch of ``predict`` holds, and to give each of several processes its share, Lightning makes
    a loader anew with the arguments of the first and some by name; those that came by position it then gives twice.
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
            if self.trainer.world_size == 1 and whole:  # It is as good as it is: all images, in their order.
                return dataloader
            raise ValueError(
                f"{type(dataloader).__name__} can't be made anew with another sampler, which "
                f"{mode.dataloader_prefix}_dataloader needs here: let its __init__ hand **kwargs on to DataLoader, "
                "without batch_size, shuffle, sampler or drop_last of its own, or return a DataLoader"
            ) from error


def seed_epoch(trainer: Trainer) -> None:
    """Let the order of an epoch depend on seed and epoch alone: processes share it, and a resumed run repeats it."""
    seed_torch(trainer.strategy.root_device, "loaders", run_seed(trainer), trainer.current_epoch)


def _name_arguments(dataloader: object) -> None:
    """Give names to the arguments that Lightning has noted of a loader by their position."""
    names, values = getattr(dataloader, "__pl_saved_arg_names", ()), getattr(dataloader, "__pl_saved_args", ())
    if values and len(names) == len(values):
        named = dict(zip(names, values, strict=True)) | getattr(dataloader, "__pl_saved_kwargs", {})
        for attribute, value in (("args", ()), ("arg_names", ()), ("kwargs", named)):
            object.__setattr__(dataloader, f"__pl_saved_{attribute}", value)
