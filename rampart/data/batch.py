"""Batches of data loaders in one common form."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rampart.attacks.validation import ROUNDING, require
from rampart.data.augment import scale_images

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "input", "inputs", "x", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
INDEX_KEYS = ("index", "idx")

_FORM = (
    "a batch must be (images, labels), (images, labels, index) or a dictionary with a key for each, such as image and "
    "label"
)


class Batch(NamedTuple):
    """A batch in the common form.

    Attributes:
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64; None if the batch has none.
        index: ``(N,)``, int64, zero-based index of each image in its data set; None if the batch has none.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index


def read_batch(batch: Any, labelled: bool = True, dtype: torch.dtype = torch.float32) -> Batch:
    """Convert a data loader's batch to float images in [0, 1] and int64 labels ``(N,)``.

    The batch may be a tuple, list, named tuple, dataclass or mapping of tensors or NumPy arrays, or images alone.
    Images may be uint8, bool, or float; float values outside [0, 1] by a rounding error are clipped. Labels may be
    whole numbers of any dtype, ``(N,)`` or ``(N, 1)``, or one-hot ``(N, classes)``.

    Args:
        batch: Batch that the loader yielded. A :class:`Batch` is returned unchanged if its images have the dtype.
        labelled: Raise an error if the batch has no labels.
        dtype: Dtype of the returned images: float32, or float64 for a float64 network.

    Returns:
        The batch, without a third item that is no index, such as file names.

    Raises:
        ValueError: If the batch has another form; the message describes it in one line. On an accelerator, wrong values
            raise the device's asynchronous assertion instead.
    """
    if isinstance(batch, Batch) and batch.images.dtype == dtype and (batch.labels is not None or not labelled):
        return batch
    images, labels, index = _split_batch(batch)
    images = _as_tensor(images, None)
    if images is None or (labels is None and labelled):
        raise ValueError(f"{_FORM}; got {_describe(batch)}")
    images = _read_images(images, dtype)
    if labels is not None:
        labels = _read_labels(labels, images)
    return Batch(images, labels, _read_index(index, images))


def _split_batch(batch: Any) -> tuple[Any, Any, Any]:
    if isinstance(batch, Tensor) or hasattr(batch, "__array__"):
        return batch, None, None
    if not isinstance(batch, Mapping):
        named = _named_fields(batch)
        if named is None:
            items = [*batch[:3], None, None, None] if isinstance(batch, Sequence) and not isinstance(batch, str) else []
            return (items[0], items[1], items[2]) if items else (None, None, None)
        batch = named
    return _find_value(batch, IMAGE_KEYS), _find_value(batch, LABEL_KEYS), _find_value(batch, INDEX_KEYS)


def _named_fields(batch: Any) -> dict[str, Any] | None:
    """Return the fields of a named tuple or dataclass; None if none of them has a name for images."""
    fields: dict[str, Any] = {}
    if hasattr(batch, "_asdict"):
        fields = batch._asdict()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return fields if any(name in fields for name in IMAGE_KEYS) else None


def _find_value(batch: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    found = [key for key in keys if key in batch]
    if len(found) > 1:
        raise ValueError(f"a batch must have one of the keys {', '.join(keys)}; got {' and '.join(found)}")
    return batch[found[0]] if found else None


def _read_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must be (N, ...), such as (N, C, H, W), N above 0; got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return scale_images(images, dtype)
    if images.dtype == torch.bool:
        return images.to(dtype)
    if not images.is_floating_point():
        raise ValueError(
            f"images must be float in [0, 1] or uint8, got {images.dtype}: divide them by their largest possible value"
        )
    tolerance = max(ROUNDING, torch.finfo(images.dtype).eps)
    images = images.to(dtype)
    low, high = torch.aminmax(images.detach())
    message = "images must be in [0, 1] without NaN{}: scale them to [0, 1] and put normalisation into the network"
    if images.device.type != "cpu":  # Reading the values would make the host wait for the device.
        torch._assert_async((low >= -tolerance) & (high <= 1 + tolerance), message.format(""))
        return images.clamp(0, 1)
    least, most = low.item(), high.item()
    if not (least >= -tolerance and most <= 1 + tolerance):
        raise ValueError(message.format(f", got {least:.8g} to {most:.8g}") + " (rampart.networks.Normalize)")
    return images if least >= 0 and most <= 1 else images.clamp(0, 1)


def _read_labels(values: Any, images: Tensor) -> Tensor:
    labels = _as_tensor(values, images.device)
    if labels is None:
        raise ValueError(f"labels must be (N,), whole numbers, one for each image; got {_describe(values, 1)}")
    shape = f"shape {tuple(labels.shape)}, {labels.dtype}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim not in (1, 2) or len(labels) != len(images) or labels.is_complex():
        raise ValueError(f"labels must be (N,), one for each of {len(images)} images, or one-hot; got {shape}")
    if labels.ndim == 2:
        one_hot = (((labels == 0) | (labels == 1)).all(1) & ((labels == 1).sum(1) == 1)).all()
        require(one_hot, f"labels must be (N,), whole numbers, or one-hot, not soft or several; got {shape}")
        return (labels == 1).to(torch.uint8).argmax(1)
    if labels.is_floating_point():
        require((labels == labels.round()).all(), f"labels must be whole numbers, the classes; got {shape}")
    return labels.to(torch.int64)


def _read_index(values: Any, images: Tensor) -> Tensor | None:
    index = None if values is None else _as_tensor(values, images.device)
    if index is None or index.shape != images.shape[:1] or index.is_floating_point() or index.is_complex():
        return None
    return index.to(torch.int64)


def _as_tensor(values: Any, device: torch.device | None) -> Tensor | None:
    """Convert values to a tensor.

    Args:
        values: Tensor, NumPy array or sequence of numbers.
        device: Device of the result. If None, only tensors and arrays are converted.

    Returns:
        The tensor; None if the values can't be converted.
    """
    if isinstance(values, Tensor):
        return values
    if device is None and not hasattr(values, "__array__"):
        return None
    try:
        return torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError):
        return None


def _describe(value: Any, depth: int = 0) -> str:
    """Describe the form of a batch, such as ``a tuple of (tensor (16, 1, 28, 28) float32, list of 16 str)``."""
    kind = type(value).__name__
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return f"{kind} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        some = list(value)[:8]
        inside = [str(key) if depth else f"{key}: {_describe(value[key], 1)}" for key in some]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if depth and value:
            return f"{kind} of {len(value)} {type(value[0]).__name__}"
        some = list(value)[:8]
        inside = [_describe(item, 1) for item in some]
    else:
        return kind
    rest = ", ..." if len(value) > len(some) else ""
    return f"{kind} of ({', '.join(inside)}{rest})"
