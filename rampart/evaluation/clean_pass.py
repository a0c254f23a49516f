"""First pass over the clean images, before any attack: checks, predictions and hashes."""

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

MAX_PROBED = 200


class Probe(NamedTuple):
    """The first correctly classified images, at most ``MAX_PROBED``, for checks of the network and the attacks.

    Attributes:
        images: ``(M, ...)``, on the network's device.
        labels: ``(M,)``, int64, on the network's device.
        indices: ``(M,)``, int64: zero-based indices of the images in the data set.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class CleanPass:
    """Labels, predictions and hashes of an evaluation's clean images.

    Attributes:
        labels: ``(N,)``, int64.
        clean_class: ``(N,)``, int64: the predictions for the clean images.
        starts: Zero-based index of the first image of each batch.
        hashes: Hash of each batch's images and labels.
        predictions: Fingerprint of the network: a hash of its predictions for the first batch, and the mean absolute
            logit, rounded so that floating-point differences between machines do not change it.
        probe: The first correctly classified images.
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
    """Check and classify all images once.

    Args:
        network: A network in eval mode that maps images to logits ``(N, C)``.
        source: Source of images ``(N, ...)``, float, in [0, 1], and labels ``(N,)``, int64, in [0, C).
        batch_size: Images per batch.
        num_images: Number of images, from the first on; all if None.
        on_progress: Called with the number of images seen so far, after each batch.

    Raises:
        ValueError: If there are no images or fewer than ``num_images``, if an image or a label is invalid, or if the
            weights or the logits are not finite.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    check_weights(network)
    labels_of: list[Tensor] = []
    clean_of: list[Tensor] = []
    probes: list[Probe] = []
    starts, hashes, predictions = [0], list[str](), ""

    def classify(batch: int, images: Tensor, labels: Tensor) -> None:
        nonlocal predictions
        indices = torch.arange(len(labels)) + starts[-1]
        logits = _checked_logits(network, batch, images, labels, indices)
        clean = logits.argmax(1)
        predictions = predictions or f"{fingerprint(clean)[:16]}, {logits.abs().mean().item():.4g}"
        labels_of.append(labels.cpu())
        clean_of.append(clean.cpu())
        hashes.append(fingerprint(images, labels)[:16])
        starts.append(starts[-1] + len(labels))
        if (missing := MAX_PROBED - sum(len(probe.labels) for probe in probes)) > 0:
            correct = (clean == labels).nonzero().squeeze(1)[:missing]
            probes.append(Probe(images[correct].clone(), labels[correct].clone(), indices[correct.cpu()]))
        on_progress(starts[-1])

    visit_batches(source, classify, batch_size, num_images)
    total = starts.pop()
    if total == 0:
        raise ValueError("the test data hold no images: nothing can be evaluated")
    if num_images is not None and total < num_images:
        raise ValueError(f"num_images must be from 1 to the test images' number, {total}, got {num_images}")
    return CleanPass(torch.cat(labels_of), torch.cat(clean_of), starts, hashes, predictions, _join(probes))


def _join(probes: list[Probe]) -> Probe:
    same_shape = [probe for probe in probes if probe.images.shape[1:] == probes[0].images.shape[1:]]
    return Probe(*(torch.cat(tensors) for tensors in zip(*same_shape, strict=True)))


def _checked_logits(network: nn.Module, batch: int, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    with _naming_batch_in_errors(batch):
        # On the CPU, since the error on an accelerator would not name the values.
        check_images(images.cpu(), labels.cpu())
    logits = finite_logits(network, images, indices, f"on the clean images of batch {batch + 1}")
    with _naming_batch_in_errors(batch):
        check_labels(labels.cpu(), logits.cpu())
    return logits


@contextmanager
def _naming_batch_in_errors(batch: int) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} (batch {batch + 1} of the test images)") from error
