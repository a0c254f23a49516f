"""Interval bound propagation (IBP): lower and upper bounds on a network's logits over all images in a box."""

import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from rampart.bounds.interval import Interval
from rampart.bounds.interval_rules import NoBoundError
from rampart.kernels import full_float32

LIKELY_SIDES = (28, 32, 64, 96, 224)  # Image sides to try with a network that has no `image_shape`.


def interval_logits(
    network: nn.Module, images: Tensor, eps: float | Tensor, clean: Tensor | None = None, trace: bool = False
) -> Interval:
    """Return bounds on the logits of all images within eps of these and within [0, 1]; see :func:`box_logits`.

    Args:
        network: A network of operations with a rule; see :class:`Interval`.
        images: ``(N, ...)``, float, in [0, 1].
        eps: Radius in l-inf on the pixel scale, at least 0; a tensor ``(N,)`` gives each image its own.
        clean: Batch whose statistics BatchNorm in train mode uses, like ``images`` in shape, such as the images of an
            attack. If None, that batch is ``images``, if the network has such a layer.
        trace: Record the operations; see :class:`Interval`.

    Returns:
        An interval of shape ``(N, C)``.
    """
    if clean is None and uses_batch_statistics(network):
        clean = images
    radius = eps.to(images).view(-1, *[1] * (images.ndim - 1)) if isinstance(eps, Tensor) else eps
    return box_logits(network, (images - radius).clamp(0, 1), (images + radius).clamp(0, 1), clean, trace)


def box_logits(
    network: nn.Module, lower: Tensor, upper: Tensor, clean: Tensor | None = None, trace: bool = False
) -> Interval:
    """Return bounds on the logits of all images in a box, by interval bound propagation.

    Computed without autocast and TF32, whatever the settings: lower precision rounds by more than a small eps.

    In train mode, the network normalises the box by the batch statistics of ``clean``, which passes through the network
    in the same call. As in a pass of that batch alone, BatchNorm's running statistics are updated once.

    Args:
        network: A network of operations with a rule; see :class:`Interval`.
        lower: ``(N, ...)``, float, lower bounds of the pixels.
        upper: Upper bounds, like ``lower`` in shape; nowhere below it.
        clean: A batch that passes along, like ``lower`` in shape; its logits are the result's ``clean``. Needed if
            BatchNorm is in train mode.
        trace: Record the operations; see :class:`Interval`.

    Returns:
        An interval of shape ``(N, C)``.

    Raises:
        NoBoundError: If the network has an operation without a rule; the message names the layer.
        TypeError: If the network does not return an interval, because it uses other functions than torch's.
        ValueError: If the shape of ``clean`` differs from that of the box.
    """
    if clean is not None and clean.shape != lower.shape:
        raise ValueError(f"clean must have the shape of the box, {tuple(lower.shape)}, got {tuple(clean.shape)}")
    with full_float32(lower.device.type):
        logits = _propagate(network, network, Interval(lower, upper, clean, trace))
    if not isinstance(logits, Interval):
        raise TypeError(
            f"the network must use torch's functions alone to be bounded: it returned {type(logits).__name__} for an "
            "Interval"
        )
    return logits


def uses_batch_statistics(network: nn.Module) -> bool:
    """Return True if a network has BatchNorm in train mode."""
    return any(isinstance(module, _BatchNorm) and module.training for module in network.modules())


def check_bounded(network: nn.Module) -> None:
    """Check that every operation of a network has an interval bound, as far as that is possible without images.

    The network is run on the meta device, in its current mode, with images of ``network.image_shape`` or else of likely
    sizes. If it accepts none of them, nothing is checked.

    Args:
        network: The network to check; not changed.

    Raises:
        NoBoundError: If an operation has no bound; the message names the first such layer.
    """
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    for shape in _likely_shapes(network):
        try:
            _propagate_on_meta(network, shape)
        except NoBoundError:
            raise
        except Exception:  # noqa: S112 - the network takes images of another shape
            continue
        return


def _propagate_on_meta(network: nn.Module, shape: tuple[int, ...]) -> None:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((tensor.dtype for tensor in meta.values() if tensor.is_floating_point()), None)
    image = torch.empty(2, *shape, dtype=dtype, device="meta")
    with torch.no_grad():
        box = Interval(image, image.clone(), clean=image.clone())
        _propagate(network, lambda box: functional_call(network, meta, (box,)), box)


def _propagate(network: nn.Module, forward: Callable[[Interval], Any], box: Interval) -> Any:
    """Pass a box through a network; if an operation has no bound, name its layer in the error."""
    try:
        return forward(box)
    except NoBoundError as error:
        names = {module: name for name, module in network.named_modules()}
        callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        layer = [network, *(caller for caller in callers if isinstance(caller, nn.Module) and caller in names)][-1]
        where = _describe(names[layer], layer)
        raise NoBoundError(f"{error} (in {where})") from None


def _describe(name: str, module: nn.Module) -> str:
    return f"layer {name}, {type(module).__name__}" if name else type(module).__name__


def _likely_shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield shapes of images that the network may take, the likeliest first."""
    stated: Any = getattr(network, "image_shape", None)
    if stated is not None:
        yield tuple(stated)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            yield from ((module.in_channels, side, side) for side in LIKELY_SIDES)
            return
        if isinstance(module, nn.Linear):
            side = math.isqrt(module.in_features)
            yield (1, side, side)
            yield (module.in_features,)
            return
