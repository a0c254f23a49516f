"""Evaluate any network, by its import path."""

import pkgutil
import sys
import typing
from types import FunctionType
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_modules import AdversarialClassifier

OWN_ROOMS = ("lightning_modules", "rampart")


class AnyNetwork(AdversarialClassifier):
    """A network that is only evaluated, from wherever it comes."""


class AnyLightningModule(AnyNetwork):
    """A LightningModule that maps images to logits, as the network; its own hooks see the batches, as in its test."""

    network: LightningModule

    def prepare_data(self) -> None:
        """Let the module prepare its data."""
        self.network.prepare_data()

    def setup(self, stage: str) -> None:
        """Let the module set itself up."""
        super().setup(stage)
        self.network.setup(stage)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the module change a batch."""
        return self.network.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Let the module move a batch."""
        return self.network.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the module change a batch on its device."""
        return self.network.on_after_batch_transfer(batch, dataloader_idx)


def any_network(arguments: list[str]) -> list[str]:
    """Let evaluate's ``--model`` be any network: the import path of an nn.Module or of a function that makes one.

    Args:
        arguments: Of the command line.

    Returns:
        The same, with such a network in an AdversarialClassifier.

    Raises:
        ValueError: If the path leads nowhere, or to what does not make a network.
    """
    path, rest, after = "", [], 0
    words = iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--model":
            path = value or next(words, "")
            continue
        rest.append(word)
        if flag in ("--config", "-c"):
            rest += [] if value else [next(words, "")]
        if flag in ("--config", "-c", "evaluate"):
            after = len(rest)  # what a config says of the model is overridden
    dotted = "." in path and all(part.isidentifier() for part in path.split("."))
    if "evaluate" not in rest or not dotted or path.endswith((".yaml", ".yml", ".json")):
        return arguments
    try:
        factory = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model must be the import path of a network or of a function that makes one: {error}"
        ) from error
    if isinstance(factory, type) and issubclass(factory, AdversarialClassifier):
        return arguments
    _check_factory(factory, path)
    holder: type = AnyNetwork
    if isinstance(factory, type) and issubclass(factory, LightningModule):
        holder = AnyLightningModule
    elif factory.__module__.split(".")[0] in OWN_ROOMS:
        holder = AdversarialClassifier
    eps = [] if any(word.partition("=")[0] == "--model.eps" for word in rest) else ["--model.eps=0"]
    model = [f"--model={holder.__module__}.{holder.__name__}", f"--model.network={path}"]
    return [*rest[:after], *model, *eps, *rest[after:]]


def brings_weights(model: AdversarialClassifier) -> bool:
    """Tell whether a model's network may have its weights from where it was made: Rampart's own are made untrained."""
    return isinstance(model, AnyNetwork) or type(model.network).__module__.split(".")[0] not in OWN_ROOMS


def _check_factory(factory: Any, path: str) -> None:
    """Refuse what does not make a network before it is called; let a function that says nothing of what it returns be.

    Raises:
        ValueError: If it is neither a class of networks nor a function that may return one.
    """
    kind = type(factory).__name__
    if isinstance(factory, type):
        if not issubclass(factory, nn.Module):
            raise ValueError(f"model must be a class of networks (torch.nn.Module) or a function, got the class {path}")
        return
    module = getattr(factory, "__module__", None) or ""
    if module.split(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"model must be a function that makes a network, got {path} of Python's own library")
    if not isinstance(factory, FunctionType):
        raise ValueError(f"model must be a class or a function, got {path}, which is a {kind}")
    try:
        returned = typing.get_type_hints(factory).get("return")
    except Exception:  # names that exist for type checkers only
        returned = None
    if returned is type(None) or (isinstance(returned, type) and not issubclass(returned, nn.Module)):
        raise ValueError(f"model must be a function that makes a network, got {path}, which returns {returned}")
    if not isinstance(returned, type):
        factory.__annotations__["return"] = nn.Module  # jsonargparse calls only functions that say so
