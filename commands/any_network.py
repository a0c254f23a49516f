"""Evaluate any network, by its import path."""

import pkgutil
from types import FunctionType

from pytorch_lightning import LightningModule
from torch import nn


def any_network(arguments: list[str]) -> list[str]:
    """Let evaluate's ``--model`` be any network: the import path of an nn.Module or of a function that makes one.

    Args:
        arguments: Of the command line.

    Returns:
        The same, with such a network in an AdversarialClassifier.

    Raises:
        ValueError: If the path leads nowhere, or to what is neither a class nor a function.
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
    if isinstance(factory, type) and issubclass(factory, LightningModule):
        return arguments
    if not isinstance(factory, (type, FunctionType)):
        raise ValueError(f"model must be a class or a function, got {path}, which is a {type(factory).__name__}")
    if isinstance(factory, FunctionType):
        # Of functions, only those are built that say what they return.
        factory.__annotations__.setdefault("return", nn.Module)
    eps = [] if any(word.partition("=")[0] == "--model.eps" for word in rest) else ["--model.eps=0"]
    return [*rest[:after], "--model=AdversarialClassifier", f"--model.network={path}", *eps, *rest[after:]]
