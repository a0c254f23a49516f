"""A first look at all images of an evaluation: checks, clean predictions and hashes, before anything is attacked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rampart.attacks.validation import check_images, check_labels
from rampart.evaluation.image_source import Source, show_batches
from rampart.evaluation.network_checks import check_weights, finite_logits
from rampart.files.provenance import fingerprint

PROBED = 200  # images that are looked at for signs of masked gradients


class Probe(NamedTuple):
    """The first images that are correctly classified.

    Attributes:
        images: ``(M, ...)``, on the network's device.
        labels: ``(M,)``, int64, on the network's device.
        places: ``(M,)``, int64: their numbers in the set.
    """

    images: Tensor
    labels: Tensor
    places: Tensor


@dataclass(frozen=True)
class Survey:
    """The images of an evaluation, without the images.

    Attributes:
        labels: ``(N,)``, int64.
        clean: ``(N,)``, int64: the predictions for the clean images.
        starts: Of each batch, the number of its first image.
        names: Of each batch, a hash of its images and labels.
        answers: The network's predictions for the first batch, hashed, and the size of its logits, in digits that a
            machine's rounding does not reach.
        probe: For checks of the network and of the attacks.
    """

    labels: Tensor
    clean: Tensor
    starts: list[int]
    names: list[str]
    answers: str
    probe: Probe


def survey_images(
    network: nn.Module,
    source: Source,
    batch_size: int,
    num_images: int | None = None,
    told: Callable[[int], None] = lambda _seen: None,
) -> Survey:
    """Look at all images once.

    Args:
        network: Maps images to logits ``(N, C)``; in eval mode.
        source: Shows the images.
        batch_size: Images of a batch.
        num_images: How many of the first images; all if None.
        told: Is told the number of images seen.

    Raises:
        ValueError: If there are no images or fewer than ``num_images``, an image or label is not as it must be, or the
            weights or logits are not finite.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    check_weights(network)
    labels_of: list[Tensor] = []
    clean_of: list[Tensor] = []
    probes: list[Probe] = []
    starts, names, answers = [0], list[str](), ""

    def look(batch: int, images: Tensor, labels: Tensor) -> None:
        nonlocal answers
        places = torch.arange(len(labels)) + starts[-1]
        logits = _checked_logits(network, batch, images, labels, places)
        clean = logits.argmax(1)
        answers = answers or f"{fingerprint(clean)[:16]}, {logits.abs().mean().item():.4g}"
        labels_of.append(labels.cpu())
        clean_of.append(clean.cpu())
        names.append(fingerprint(images, labels)[:16])
        starts.append(starts[-1] + len(labels))
        if (room := PROBED - sum(len(probe.labels) for probe in probes)) > 0:
            right = (clean == labels).nonzero().squeeze(1)[:room]
            probes.append(Probe(images[right].clone(), labels[right].clone(), places[right.cpu()]))
        told(starts[-1])

    show_batches(source, look, batch_size, num_images)
    total = starts.pop()
    if total == 0:
        raise ValueError("the test data give no images: nothing can be evaluated")
    if num_images is not None and total < num_images:
        raise ValueError(f"num_images must be from 1 to the test images' number, {total}, got {num_images}")
    return Survey(torch.cat(labels_of), torch.cat(clean_of), starts, names, answers, _join(probes))


def _join(probes: list[Probe]) -> Probe:
    alike = [probe for probe in probes if probe.images.shape[1:] == probes[0].images.shape[1:]]
    return Probe(*(torch.cat(tensors) for tensors in zip(*alike, strict=True)))


def _checked_logits(network: nn.Module, batch: int, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    with _naming(batch):
        # On the host: an accelerator would refuse them without a word of which they are.
        check_images(images.cpu(), labels.cpu())
    logits = finite_logits(network, images, places, f"on the clean images of batch {batch + 1}")
    with _naming(batch):
        check_labels(labels.cpu(), logits.cpu())
    return logits


@contextmanager
def _naming(batch: int) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} (batch {batch + 1} of the test images)") from error
