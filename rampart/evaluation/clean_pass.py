"""A first look at all images of an evaluation: checks, clean predictions and hashes, before anything is attacked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rampart.attacks.validation import check_images, check_labels
from rampart.evaluation.image_source import Source, visit_batches
from rampart.evaluation.network_checks import check_weights, finite_logits
from rampart.files.provenance import fingerprint

MAX_PROBED = 200  # images that are looked at for signs of masked gradients


class Probe(NamedTuple):
    """The first images that are correctly classified.

    Attributes:
        images: ``(M, ...)``, on the network's device.
        labels: ``(M,)``, int64, on the network's device.
        indices: ``(M,)``, int64: their zero-based indices in the data set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class CleanPass:
    """The images of an evaluation, without the images.

    Attributes:
        labels: ``(N,)``, int64.
        clean_class: ``(N,)``, int64: the predictions for the clean images.
        starts: Of each batch, the number of its first image.
        hashes: Of each batch, a hash of its images and labels.
        predictions: The network's predictions for the first batch, hashed, and the size of its logits, in digits that a
            machine's rounding does not reach.
        probe: For checks of the network and of the attacks.
    """

    labels: Tensor
    clean_class: Tensor
    starts: list[int]
    hashes: list[str]
    predictions: str
    probe: Probe


def run_clean_pass(
    network: nn.Module,
    source: Source,
    batch_size: int,
    num_images: int | None = None,
    on_progress: Callable[[int], None] = lambda _seen: None,
) -> CleanPass:
    """Look at all images once.

    Args:
        network: Maps images to logits ``(N, C)``; in eval mode.
        source: Shows the images.
        batch_size: Images of a batch.
        num_images: How many of the first images; all if None.
        on_progress: Called with the number of images seen so far, after each batch.

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
    starts, hashes, predictions = [0], list[str](), ""

    def look(batch: int, images: Tensor, labels: Tensor) -> None:
        nonlocal predictions
        places = torch.arange(len(labels)) + starts[-1]
        logits = _checked_logits(network, batch, images, labels, places)
        clean = logits.argmax(1)
        predictions = predictions or f"{fingerprint(clean)[:16]}, {logits.abs().mean().item():.4g}"
        labels_of.append(labels.cpu())
        clean_of.append(clean.cpu())
        hashes.append(fingerprint(images, labels)[:16])
        starts.append(starts[-1] + len(labels))
        if (room := MAX_PROBED - sum(len(probe.labels) for probe in probes)) > 0:
            right = (clean == labels).nonzero().squeeze(1)[:room]
            probes.append(Probe(images[right].clone(), labels[right].clone(), places[right.cpu()]))
        on_progress(starts[-1])

    visit_batches(source, look, batch_size, num_images)
    total = starts.pop()
    if total == 0:
        raise ValueError("the test data give no images: nothing can be evaluated")
    if num_images is not None and total < num_images:
        raise ValueError(f"num_images must be from 1 to the test images' number, {total}, got {num_images}")
    return CleanPass(torch.cat(labels_of), torch.cat(clean_of), starts, hashes, predictions, _join(probes))


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
