"""Checks of what an attack returns, and of whether it can run at all."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.attacks.attack import attack_active
from rampart.attacks.eps import NormName
from rampart.attacks.logits import logits_of
from rampart.attacks.random import generator_for

ROUNDING = 1e-4
"""Share of the largest logit by which that of a file's class may be below it: other batch sizes and machines round
otherwise."""


def check_attack_runs(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> None:
    """Run an attack for one step, so that one that can't run on such images or networks says so before any computes.

    Args:
        attack: Is tried if it is a dataclass with a number of steps or queries, as Rampart's are.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``; a few will do.
        labels: ``(N,)``, int64.
        eps: Pixel scale.

    Raises:
        ValueError: If it can't run; in one line.
    """
    counts = [name for name in ("steps", "queries") if isinstance(getattr(attack, name, None), int)]
    if len(labels) == 0 or not is_dataclass(attack) or not counts:
        return
    try:
        short: Any = replace(attack, **dict.fromkeys(counts, 1))
    except (TypeError, ValueError):  # Its settings belong together.
        return
    try:
        short(model, images, labels, eps, generator=generator_for(images.device, "try out"))
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
        attack: Is given the whole batch where it can attack a part of it, so that an image's random numbers do not
            depend on which others are left; else the images alone.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``, the batch.
        labels: ``(N,)``, int64.
        index: ``(M,)``, int64, which images.
        eps: Pixel scale.
        seed: Of all random numbers, also of those that an attack or a network draws from torch's global ones.

    Returns:
        ``(M, ...)``.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    with isolated_random_state(seed, images.device):
        parameters = inspect.signature(attack).parameters.values()
        if any(parameter.name == "active" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            active = torch.zeros_like(labels, dtype=torch.bool).index_fill_(0, index, True)
            adv = attack_active(attack, model, images, labels, eps, generator, active)
            return adv[index] if isinstance(adv, Tensor) else adv
        return attack(model, images[index], labels[index], eps, generator=generator)


def check_adversarial(adv: Tensor, images: Tensor, eps: float, attack: Attack) -> None:
    """Refuse what an attack must not return.

    Raises:
        ValueError: If an image is outside the ball or the box by more than rounding, or not a number, or if the images
            are no tensor, not as many, or of another shape, dtype or device.
    """
    if _form(adv) != _form(images):
        raise ValueError(
            f"{attack.name} returned {_form(adv)}, not {_form(images)}: the attack is broken, no number is reported"
        )
    outside = int((~_inside(adv, images, eps, attack.norm)).sum())
    if outside:
        raise ValueError(
            f"{attack.name} returned {outside} images outside the ball of eps {eps:g} or the box [0, 1]: "
            "the attack is broken, no number is reported"
        )


def is_valid_result(
    found: Mapping[str, Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    robust: Tensor,
    eps: float,
    norm: NormName,
) -> bool:
    """Check that what a file says an attack has found is true.

    Args:
        found: From the file: ``index``, ``adv``, ``adv_class``, ``seconds``.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``, the batch.
        labels: ``(N,)``, int64.
        robust: ``(M,)``, int64, rising: the images of the batch that were attacked.
        eps: Pixel scale.
        norm: Of the ball.

    Returns:
        True if each image of ``index`` was attacked, and is inside ball and box, and fools the model.
    """
    if set(found) != {"index", "adv", "adv_class", "seconds"} or found["seconds"].numel() != 1:
        return False
    if not found["seconds"].is_floating_point() or not 0 <= float(found["seconds"]) < float("inf"):
        return False
    index, adv, classes = found["index"], found["adv"], found["adv_class"]
    if index.dtype != torch.int64 or index.ndim != 1 or len(set(index.tolist())) < len(index):
        return False
    if classes.dtype != torch.int64 or classes.shape != index.shape or not bool(torch.isin(index.cpu(), robust).all()):
        return False
    if adv.dtype != images.dtype or adv.shape != (len(index), *images.shape[1:]):
        return False
    if len(index) == 0:
        return True
    if not bool(_inside(adv, images[index], eps, norm).all()):
        return False
    with torch.no_grad():
        logits = logits_of(model, adv)
    if not bool(((classes >= 0) & (classes < logits.shape[1]) & (classes != labels[index])).all()):
        return False
    lag = logits.amax(1) - logits.gather(1, classes[:, None]).squeeze(1)
    return bool((lag <= ROUNDING * logits.abs().amax(1).clamp_min(1)).all())


@contextmanager
def isolated_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random numbers, which custom attacks and random networks draw, and put them back."""
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
    return (lengths <= eps * (1 + 1e-5) + 1e-6) & ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
