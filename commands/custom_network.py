"""Networks from the user's own code: a class, a function that returns a network, or a LightningModule."""

import pkgutil
import sys
import typing
from types import FunctionType
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules import AdversarialClassifier

OWN_PACKAGES = ("lightning_modules", "rampart")


class _LightningNetworkClassifier(AdversarialClassifier):
    """Classifier that calls the hooks of its network, a LightningModule, as the network's own test does."""

    network: LightningModule

    def prepare_data(self) -> None:
        """Call the network's hook."""
        self.network.prepare_data()

    def setup(self, stage: str) -> None:
        """Call the network's hook after the classifier's."""
        super().setup(stage)
        self.network.setup(stage)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Call the network's hook."""
        return self.network.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Call the network's hook."""
        return self.network.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Call the network's hook."""
        return self.network.on_after_batch_transfer(batch, dataloader_idx)


def add_network_hooks(model: AdversarialClassifier) -> AdversarialClassifier:
    """Return a classifier that calls the network's hooks if the network is a LightningModule; else the model itself.

    A custom subclass of AdversarialClassifier is returned unchanged too: it has its own hooks.
    """
    if isinstance(model.network, LightningModule) and _is_own(type(model).__module__):
        classifier = _LightningNetworkClassifier(model.network, model.target_eps, model.attack)
        classifier.execution = model.execution
        return classifier
    return model


def may_be_trained(model: AdversarialClassifier) -> bool:
    """Return True if the network may be built with trained weights; Rampart's networks never are."""
    path = (model.network_settings or {}).get("class_path") or type(model.network).__module__
    return not _is_own(path)


def declare_network(path: str) -> bool:
    """Annotate a function without return type as returning a network, because the parser accepts only such functions.

    Args:
        path: Import path that the parser refused as a network.

    Returns:
        True if the parser accepts the function now.

    Raises:
        ValueError: If the path leads to neither a network's class nor a function that may return a network.
    """
    factory = pkgutil.resolve_name(path)
    needed = "must be a class of networks (torch.nn.Module) or a function that returns one"
    if isinstance(factory, type):
        raise ValueError(f"{needed}, got the class {path}")
    if (getattr(factory, "__module__", None) or "").split(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"{needed}, got {path} of Python's own library")
    if not isinstance(factory, FunctionType):
        raise ValueError(f"{needed}, got {path}, which is a {type(factory).__name__}")
    try:
        returned = typing.get_type_hints(factory).get("return")
    except Exception:  # names that exist for type checkers only
        returned = None
    if isinstance(returned, type):
        if issubclass(returned, nn.Module):
            return False
        raise ValueError(f"{needed}, got {path}, which returns {returned.__name__}")
    factory.__annotations__["return"] = nn.Module
    return True


def _is_own(path: str) -> bool:
    return path.split(".")[0] in OWN_PACKAGES
