"""What an attack refuses before it begins."""

import torch
from torch import Tensor


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse images that an attack cannot be bounded for.

    Raises:
        TypeError: If the images are neither float32 nor float64.
        ValueError: If a value is NaN or outside [0, 1], or labels and images differ in number. Values on an
            accelerator are refused there, by an assertion of the device.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"images must be float32 or float64, got {images.dtype}: a coarser dtype rounds by more than a "
            "small eps; use autocast (trainer.precision bf16-mixed) instead"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be one for each of {len(images)} images, got shape {tuple(labels.shape)}")
    if images.numel():
        low, high = torch.aminmax(images.detach())
        _require(
            (low >= 0) & (high <= 1),
            "images must be in [0, 1] without NaN{}: scale them to [0, 1] and put normalisation into the network "
            "(networks.Normalize)",
            images,
        )


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that are not classes of the network.

    Raises:
        ValueError: If a label is outside [0, C) for logits ``(N, C)``; on an accelerator, an assertion of the device.
    """
    if labels.numel():
        _require(
            ((labels >= 0) & (labels < logits.shape[1])).all(),
            f"labels must be in [0, {logits.shape[1]}), the network's classes{{}}: match the network's num_classes to "
            "the data",
            labels,
        )


def _require(condition: Tensor, message: str, values: Tensor) -> None:
    """Raise ValueError with the values' range in the message, or on an accelerator fail without waiting for it.

    There, asking for the condition's value would make the host wait for the device at every step; the device
    refuses by itself, with the message but without the values.
    """
    if values.device.type != "cpu":
        torch._assert_async(condition, message.format(""))
    elif not bool(condition):
        low, high = values.min().item(), values.max().item()
        raise ValueError(message.format(f", got {low:.4g} to {high:.4g}"))


def one_of(name: str, value: object, allowed: list[str]) -> None:
    """Refuse a setting that is none of those allowed.

    Raises:
        ValueError: If it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
