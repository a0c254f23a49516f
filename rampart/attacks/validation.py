"""Input validation for attacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rampart.attacks.context import Model
from rampart.attacks.eps import Eps, NormName, parse_eps

ROUNDING = 1e-5
"""Largest excess over [0, 1] that counts as rounding. Errors of float32 are smaller; half a gray level is 0.002."""


_CHECKED: ContextVar[Tensor | None] = ContextVar("checked images", default=None)


@contextmanager
def checked_images(images: Tensor) -> Iterator[None]:
    """Spare attacks inside the context another look at every pixel of images whose range has been checked.

    Args:
        images: In [0, 1], and not changed inside the context. Copies of them are checked as usual.
    """
    token = _CHECKED.set(images)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def read_inputs(
    norm: NormName,
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: Eps,
    generator: torch.Generator | None,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Check an attack's arguments and copy the tensors.

    Autograd works on the copies even if the arguments were created in inference mode.

    Returns:
        The images, clipped to [0, 1] to remove rounding errors; the labels as int64; eps as a float.

    Raises:
        TypeError: If images or labels are no tensors or have an unsupported dtype, or generator is no generator.
        ValueError: If shapes, devices or values are not allowed.
    """
    radius = parse_eps(eps, norm)
    check_images(images, labels)
    device = images.device
    if isinstance(model, nn.Module):
        other = _other_device(model, device)
        if other is not None:
            raise ValueError(f"the network is on {other}, the images on {device}: move one with .to(...)")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {_type_name(generator)}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator must be on {device}, where the images are, got one on {generator.device}")
    if active is not None:
        check_active(active, images)
    with torch.inference_mode(False):
        return images.detach().clamp(0, 1), labels.detach().to(torch.int64, copy=True), radius


def check_images(images: Tensor, labels: Tensor) -> None:
    """Check the dtype, shape, device and range of images, and that labels hold one class per image.

    Raises:
        TypeError: If either is no tensor, the images are neither float32 nor float64, or the labels no integers.
        ValueError: If a value is NaN or outside [0, 1] by more than rounding, or shapes or devices don't match. On
            an accelerator, a wrong value raises the device's asynchronous assertion instead.
    """
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {_type_name(values)}: convert it with torch.as_tensor({name})"
            )
    if images.dtype not in (torch.float32, torch.float64):
        remedy = "a coarser dtype rounds by more than a small eps; use autocast (trainer.precision bf16-mixed) instead"
        if not images.is_floating_point():
            remedy = "divide them by their largest possible value, such as images.float() / 255"
        raise TypeError(f"images must be float32 or float64, got {images.dtype}: {remedy}")
    if images.ndim < 2:
        raise ValueError(f"images must have shape (N, ...), such as (N, C, H, W), got {tuple(images.shape)}")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be int64, one class for each image, got {labels.dtype}: use labels.long()")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be one for each of {len(images)} images, got shape {tuple(labels.shape)}: use "
            "labels.argmax(1) for one-hot labels, labels.squeeze(1) for a column"
        )
    if labels.device != images.device:
        raise ValueError(f"labels must be on {images.device}, where the images are, got {labels.device}")
    if images.numel() and images is not _CHECKED.get():
        low, high = torch.aminmax(images.detach())
        require(
            (low >= -ROUNDING) & (high <= 1 + ROUNDING),
            "images must be in [0, 1] without NaN{}: scale them to [0, 1] and put normalisation into the network "
            "(rampart.networks.Normalize)",
            images,
        )


def _other_device(model: nn.Module, device: torch.device) -> torch.device | None:
    """Return the device of a model that has tensors, but none on ``device``; None for any other model."""
    other = None
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device == device:
            return None
        other = tensor.device
    return other


def _type_name(value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{kind} of {value.dtype}" if hasattr(value, "dtype") else kind


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Check that labels are classes of the network; see :func:`check_classes`.

    Raises:
        ValueError: If a label is outside [0, C) for logits ``(N, C)``.
    """
    check_classes(labels, logits.shape[1])


def check_classes(labels: Tensor, classes: int) -> None:
    """Check that labels are classes of the network.

    Raises:
        ValueError: If a label is outside [0, classes). On an accelerator, a wrong label raises the device's
            asynchronous assertion instead.
    """
    if labels.numel():
        require(
            ((labels >= 0) & (labels < classes)).all(),
            f"labels must be in [0, {classes}), the network's classes{{}}: match the network's num_classes to the data",
            labels,
        )


def check_active(active: Tensor, images: Tensor) -> None:
    """Check the mask of the images to attack.

    Raises:
        ValueError: If it is not bool, of shape ``(N,)`` and on the images' device.
    """
    if not isinstance(active, Tensor):
        raise ValueError(f"active must be a bool tensor of shape ({len(images)},), got {_type_name(active)}")
    if active.dtype != torch.bool or active.shape != images.shape[:1] or active.device != images.device:
        raise ValueError(
            f"active must be bool of shape ({len(images)},) on {images.device}, one for each image, got "
            f"{active.dtype} of shape {tuple(active.shape)} on {active.device}"
        )


def check_finite(logits: Tensor, where: str) -> None:
    """Check that logits are finite, since NaN or infinite logits give no prediction and no accuracy.

    Attacks do not call this: they return a point with such logits as one that fools the model. Evaluations call it
    when they predict the class of that point.

    Args:
        logits: ``(N, C)``.
        where: The images, for the message, such as ``"on clean images"`` or ``"under PGD-40 at eps 0.3"``.

    Raises:
        ValueError: If a logit is not finite. On an accelerator, it raises the device's asynchronous assertion instead.
    """
    finite = logits.detach().isfinite()
    problem = f"the network's logits {where} are NaN or infinite"
    remedy = "check its weights (has its training diverged?) and its code"
    if logits.device.type != "cpu":
        torch._assert_async(finite.all(), f"{problem}: {remedy}")
    elif not bool(finite.all()):
        count = int((~finite.flatten(1).all(1)).sum())
        raise ValueError(f"{problem} for {count} of {len(logits)} images: {remedy}")


def require(condition: Tensor, message: str, values: Tensor | None = None) -> None:
    """Raise a ValueError if a condition does not hold; on an accelerator, assert without waiting for it.

    Reading the condition there would make the host wait for the device at every step. The device's own assertion has
    the message without the values.

    Args:
        condition: Scalar, bool.
        message: Text of the error, with ``{}`` where the range of the values is inserted.
        values: Values whose range the message gives; none if None.

    Raises:
        ValueError: If the condition is False, on the CPU.
    """
    if condition.device.type != "cpu":
        torch._assert_async(condition, message if values is None else message.format(""))
    elif not bool(condition):
        if values is not None:
            message = message.format(f", got {values.min().item():.8g} to {values.max().item():.8g}")
        raise ValueError(message)


def check_choice(name: str, value: object, allowed: list[str]) -> None:
    """Check that a setting is one of the allowed values.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
