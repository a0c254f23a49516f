"""Compute a model's logits and check their shape and type."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rampart.attacks.context import Model
from rampart.attacks.watched_inputs import watch_input
from rampart.kernels import call_compiled, current_execution


def compute_logits(model: Model, images: Tensor) -> Tensor:
    """Return a model's logits ``(N, C)``, at least float32.

    The model gets a copy of the images, so it may change its input in place. It may return the logits in a tuple of
    one, or under the name ``logits``, as Hugging Face's models do.

    A network is called in its compiled form if the current :class:`rampart.kernels.Execution` says so.

    Args:
        model: A network, or any function of a batch of images.
        images: ``(N, ...)``.

    Raises:
        ValueError: If the model fails on images of this shape, or returns anything else.
    """
    try:
        if isinstance(model, nn.Module) and current_execution().compile:
            output = _logits_in(call_compiled(model, images.clone()))
        else:
            output = _logits_in(model(watch_input(model, images).clone()))
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # An error of the device, such as full memory.
            raise
        reason = (str(error).splitlines() or [""])[0]
        kind = f"{tuple(images.shape)} {_dtype(images)}"
        raise ValueError(f"{_name(model)} failed on images of shape {kind}: {reason}") from error
    n = len(images)
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim != 2 or len(output) != n:
        raise ValueError(f"{_name(model)} must return logits of shape ({n}, classes) for {n} images, {_got(output)}")
    if output.shape[1] < 2:
        raise ValueError(
            f"{_name(model)} must return at least two logits per image, one for each class, {_got(output)}"
        )
    return output if output.dtype == torch.float64 else output.float()


def _logits_in(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and len(output) == 1:
        return output[0]
    return getattr(output, "logits", output)


def _got(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"got shape {tuple(output.shape)}, {_dtype(output)}"
    kind, advice = type(output).__name__, "wrap it so that it returns the logits alone"
    if isinstance(output, Mapping):
        return f"got a {kind} with the keys {', '.join(map(str, output))}: {advice}"
    size = f" of {len(output)}" if isinstance(output, (tuple, list)) else ""
    return f"got a {kind}{size}: {advice}"


def _name(model: Model) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
