"""Signs of a training step: sums that the device computes without a wait, and the numbers that follow from them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rampart.attacks import NormName


@dataclass(frozen=True)
class Signs:
    """Signs of one optimizer step, over the images of all processes.

    Attributes:
        images: Number of images.
        loss: Mean cross-entropy of the logits, whatever training minimises, in nats.
        label_entropy: Entropy of the labels, in nats: the loss of the best constant prediction, ln C if classes are
            balanced.
        label_counts: Number of images of each class.
        top_share: Share of the class that is predicted most often, in [0, 1].
        top_class: That class, zero-based.
        spread: Standard deviation of a logit over the images, mean over the classes; an image's mean logit is
            subtracted first.
        information: Mutual information of image and predicted class, in nats: the entropy of the mean probabilities
            minus the mean entropy. 0 if the network's output is the same for all images.
        accuracy: Share of correctly classified images, in [0, 1].
        grad_norm: L2 norm of the weights' gradient before clipping; None if it was not measured.
        alignment: Share of the input gradient that the perturbation still follows, in [-1, 1]; see
            :func:`sum_alignment`. None if it was not measured.
        finite: True if all logits are finite.
    """

    images: int
    loss: float
    label_entropy: float
    label_counts: tuple[float, ...]
    top_share: float
    top_class: int
    spread: float
    information: float
    accuracy: float
    grad_norm: float | None
    alignment: float | None
    finite: bool


def sum_signs(
    logits: Tensor, labels: Tensor, grad_norm: Tensor | None = None, alignment: Tensor | None = None
) -> Tensor:
    """Return the sums that :func:`read_signs` reads. They add up over batches and processes.

    Args:
        logits: ``(N, C)``, float.
        labels: ``(N,)``, int64, in [0, C).
        grad_norm: Scalar, the same in all processes; None if it is not known.
        alignment: ``(2,)``, from :func:`sum_alignment`; None if it is not known.

    Returns:
        ``(9 + 5 C,)``, float64 where the device has it, else float32, on the logits' device.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    logits = logits.detach().to(dtype)
    log_p = logits.log_softmax(1)
    p, centred, predicted = log_p.exp(), logits - logits.mean(1, keepdim=True), logits.argmax(1)
    true, one = labels[:, None] == classes, logits.new_ones(())
    scalars = [
        one * len(logits),
        F.nll_loss(log_p, labels, reduction="sum"),
        (predicted == labels).sum(),
        (~logits.isfinite()).sum(),
        torch.special.entr(p).sum(),
        one * 0 if grad_norm is None else one,
        one * 0 if grad_norm is None else grad_norm,
    ]
    per_class = [(predicted[:, None] == classes).sum(0), true.sum(0), centred.sum(0), centred.square().sum(0), p.sum(0)]
    aligned = logits.new_zeros(2) if alignment is None else alignment.to(dtype)
    head = torch.stack([scalar.to(dtype) for scalar in scalars])
    return torch.cat([head, aligned, *(part.to(dtype) for part in per_class)])


def sum_alignment(images: Tensor, adv: Tensor, grad: Tensor, norm: NormName) -> Tensor:
    """Return the sum over images of the alignment of perturbation and input gradient, and the number of images in it.

    The alignment of an image is the gain of the loss, to first order, of a further step along its perturbation, divided
    by the largest gain that a change of the perturbed pixels can have: ``<sign(delta), g> / ||g||_1`` in l-inf, the
    cosine of both in L2. For an attack of one step it compares the attack's gradient with that at the trained point
    (PertAlign). It is 1 - FOSC / (eps ||g||_1) of Wang et al. 2019, section 4 (On the convergence and robustness of
    adversarial training), for perturbations of size eps. Near 1 the loss is linear along the perturbation, at 0 the
    loss has a maximum there; in catastrophic overfitting it falls to 0 or below.

    Args:
        images: ``(N, ...)``, clean images.
        adv: ``(N, ...)``, the images that were trained on.
        grad: ``(N, ...)``, gradient of the training loss with respect to ``adv``, of any scale.
        norm: Norm of the attack.

    Returns:
        ``(2,)``, float32. Images without a perturbation or a gradient are left out.
    """
    delta, grad = (adv.detach() - images).flatten(1).float(), grad.detach().flatten(1).float()
    # Gradients of a mean loss may be so small that their squares are 0 in float32.
    grad = grad / grad.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if norm == "Linf":
        gain, most = (delta.sign() * grad).sum(1), (delta.sign() * grad).abs().sum(1)
    else:
        gain, most = (delta * grad).sum(1), delta.norm(dim=1) * grad.norm(dim=1)
    used = most > 0
    return torch.stack([torch.where(used, gain / most, 0).sum(), used.sum()])


def read_signs(sums: Sequence[float]) -> Signs:
    """Compute the signs from the sums of :func:`sum_signs`, on the host.

    Args:
        sums: ``9 + 5 C`` numbers.
    """
    n, loss, correct, not_finite, entropy, measured, grad_norm = sums[:7]
    aligned, counted = sums[7:9]
    size = (len(sums) - 9) // 5
    predicted, labels, first, second, p = (sums[9 + i * size : 9 + (i + 1) * size] for i in range(5))
    deviations = [math.sqrt(max(b / n - (a / n) ** 2, 0.0)) if n else 0.0 for a, b in zip(first, second, strict=True)]
    top = max(range(size), key=lambda index: predicted[index])
    return Signs(
        images=int(n),
        loss=loss / n,
        label_entropy=entropy_of(labels),
        label_counts=tuple(labels),
        top_share=predicted[top] / n,
        top_class=top,
        spread=sum(deviations) / size,
        information=max(entropy_of(p) - entropy / n, 0.0),
        accuracy=correct / n,
        grad_norm=grad_norm / measured if measured else None,
        alignment=aligned / counted if counted else None,
        finite=not not_finite,
    )


def entropy_of(counts: Iterable[float]) -> float:
    """Return the entropy of the shares of counts, in nats."""
    counts = [count for count in counts if count > 0]
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts) if total else 0.0
