"""Run an attack on a part of a batch, and check its result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rampart.attacks import Attack, NormName, attack_active, format_eps
from rampart.attacks.attack import accepts_active
from rampart.attacks.input_gradient import predict
from rampart.attacks.random import make_generator
from rampart.kernels import widen_for_rounding

ROUNDING = 1e-4
"""Largest allowed gap between the largest logit and that of a cached image's class, relative to the largest absolute
logit, since other batch sizes and machines round differently."""


def check_attack_runs(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> None:
    """Run an attack for one step, to find before a long search that it fails on such images or networks.

    Args:
        attack: Any attack. It is only run if it is a dataclass with a number of steps or queries, like Rampart's.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``; a few suffice.
        labels: ``(N,)``, int64.
        eps: Pixel scale.

    Raises:
        ValueError: If the attack fails; in one line.
    """
    counts = [name for name in ("steps", "queries") if isinstance(getattr(attack, name, None), int)]
    if len(labels) == 0 or not is_dataclass(attack) or not counts:
        return
    try:
        short: Any = replace(attack, **dict.fromkeys(counts, 1))
    except (TypeError, ValueError):  # Its settings can't be changed one by one.
        return
    try:
        short(model, images, labels, eps, generator=make_generator(images.device, "try out"))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{attack.name} can't attack these images with this network: {reason}; choose others with --attacks, or "
            "--preset pgd"
        ) from error


def attack_subset(
    attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, index: Tensor, eps: float, seed: int
) -> Tensor:
    """Attack some images of a batch.

    Args:
        attack: Any attack. With an argument ``active`` it gets the whole batch, so an image's random numbers do not
            depend on which other images are attacked; without, it gets only the images to attack.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``, the batch.
        labels: ``(N,)``, int64.
        index: ``(M,)``, int64: zero-based indices of the images to attack in the batch.
        eps: Pixel scale.
        seed: Seed of all random numbers, including torch's global ones, which an attack or a network may use.

    Returns:
        Adversarial images ``(M, ...)``.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    with isolated_random_state(seed, images.device):
        if accepts_active(attack):
            active = torch.zeros_like(labels, dtype=torch.bool).index_fill_(0, index, True)
            adv = attack_active(attack, model, images, labels, eps, generator, active)
            return adv[index] if isinstance(adv, Tensor) else adv
        return attack(model, images[index], labels[index], eps, generator=generator)


def check_adversarial(adv: Tensor, images: Tensor, eps: float, attack: Attack) -> None:
    """Check that an attack's output is valid: inside ball and box, with the images' shape, dtype and device.

    Raises:
        ValueError: If an image is NaN, or outside the ball or the box by more than rounding, or if the output is no
            tensor or differs from the images in shape, dtype or device.
    """
    if _form(adv) != _form(images):
        raise ValueError(
            f"{attack.name} returned {_form(adv)}, not {_form(images)}: the attack is broken, no number is reported"
        )
    outside = int((~_inside(adv, images, eps, attack.norm)).sum())
    if outside:
        raise ValueError(
            f"{attack.name} returned {outside} images outside the ball of eps {format_eps(eps)} or the box [0, 1]: "
            "the attack is broken, no number is reported"
        )


def is_valid_result(
    found: Mapping[str, Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacked: Tensor,
    eps: float,
    norm: NormName,
) -> bool:
    """Return True if a cached result is valid: each image was attacked, is inside ball and box, and fools the model.

    Args:
        found: Tensors of the cached file: ``index``, ``adv``, ``adv_class``, ``seconds``.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``, the batch.
        labels: ``(N,)``, int64.
        attacked: ``(M,)``, int64, rising: zero-based indices of the attacked images in the batch.
        eps: Pixel scale.
        norm: Norm of the ball.
    """
    if set(found) != {"index", "adv", "adv_class", "seconds"} or found["seconds"].numel() != 1:
        return False
    if not found["seconds"].is_floating_point() or not 0 <= float(found["seconds"]) < float("inf"):
        return False
    index, adv, classes = found["index"], found["adv"], found["adv_class"]
    if index.dtype != torch.int64 or index.ndim != 1 or len(set(index.tolist())) < len(index):
        return False
    if classes.dtype != torch.int64 or classes.shape != index.shape:
        return False
    if not bool(torch.isin(index.cpu(), attacked).all()):
        return False
    if adv.dtype != images.dtype or adv.shape != (len(index), *images.shape[1:]):
        return False
    if len(index) == 0:
        return True
    if not bool(_inside(adv, images[index], eps, norm).all()):
        return False
    logits = predict(model, adv)
    if not bool(((classes >= 0) & (classes < logits.shape[1]) & (classes != labels[index])).all()):
        return False
    gap = logits.amax(1) - logits.gather(1, classes[:, None]).squeeze(1)
    return bool((gap <= ROUNDING * logits.abs().amax(1).clamp_min(1)).all())


@contextmanager
def isolated_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random state, which custom attacks and random networks may use, and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"images of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _inside(adv: Tensor, images: Tensor, eps: float, norm: NormName) -> Tensor:
    delta = (adv - images).flatten(1)
    lengths = delta.abs().amax(1) if norm == "Linf" else torch.linalg.vector_norm(delta, dim=1)
    return (lengths <= widen_for_rounding(eps)) & ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
