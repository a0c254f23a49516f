"""Base class of attacks that end the search for an image with the first point that fools the model."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from rampart.attacks.attack import Attack
from rampart.attacks.context import Model, attack_context
from rampart.attacks.eps import Eps
from rampart.attacks.input_gradient import misclassified, predict
from rampart.attacks.norms import per_image
from rampart.attacks.rows import reads_are_free
from rampart.attacks.validation import check_labels, read_inputs


class Found(NamedTuple):
    """Result of one run.

    Attributes:
        adv: ``(N, ...)``, inside ball and box: a point that fools the model, or else the point with the highest loss;
            the clean image where FAB, which has no loss, finds no point. Anything for images that were done.
        done: ``(N,)``, bool, True for images that were done, and for those that are fooled now.
    """

    adv: Tensor
    done: Tensor


class Search(Attack):
    """Sequential runs; each attacks only the images that earlier runs did not fool.

    For evaluations: the cost falls with every fooled image. Misclassified clean images are returned unchanged. The
    model is attacked in eval mode and random numbers are drawn for the whole batch, so no image's result depends on
    which others are fooled. On an accelerator, the host waits for the device once before each run, to end when no image
    is left, and seldom during a run; see :class:`rampart.attacks.rows.ActiveRows`.
    """

    @property
    def drops_fooled_images(self) -> bool:
        return True

    @property
    @abstractmethod
    def runs(self) -> int:
        """Number of runs: restarts or target classes."""

    @abstractmethod
    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        done: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found | None:
        """Make one run. Return None to end the search, as when there are no more target classes.

        The tensors must not be changed.

        Args:
            model: In eval mode, its parameters frozen; gradients are on.
            images: ``(N, ...)``, the whole batch, for which random numbers are drawn.
            labels: ``(N,)``, int64.
            logits: ``(N, C)``, logits of the images; anything for images that are not attacked at all.
            done: ``(N,)``, bool, True for images that are not attacked any more; the others are classified correctly.
            eps: Radius on the pixel scale, above 0.
            run: Zero-based number of the run.
            generator: Source of random numbers.
        """

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Return a point that fools the model, or else the point of the last run with the highest loss.

        Raises:
            TypeError, ValueError: See :func:`rampart.attacks.validation.read_inputs`.
        """
        images, labels, eps = read_inputs(self.norm, model, images, labels, eps, generator, active)
        if eps == 0 or len(images) == 0 or (active is not None and not bool(active.any())):
            return images
        with attack_context(model, "eval", images.device.type):
            adv = images.clone()
            done = torch.zeros_like(labels, dtype=torch.bool) if active is None else ~active
            logits = _predict_active(model, images, labels, done)
            labels = labels.masked_fill(done, 0)  # A step may compute a loss of images that are done.
            done = done | misclassified(logits, labels)
            for run in range(self.runs):
                if bool(done.all()):
                    break
                found = self.run(model, images, labels, logits, done, eps, run, generator)
                if found is None:
                    break
                adv, done = torch.where(per_image(done, adv), adv, found.adv), found.done
        return adv


def _predict_active(model: Model, images: Tensor, labels: Tensor, done: Tensor) -> Tensor:
    """Return logits ``(N, C)``: on an accelerator of all images, elsewhere only of those that are not done."""
    if not reads_are_free(images.device):
        logits = predict(model, images)
        check_labels(labels.masked_fill(done, 0), logits)
        return logits
    chosen = (~done).nonzero().squeeze(1)
    logits = predict(model, images[chosen])
    check_labels(labels[chosen], logits)
    return logits.new_zeros(len(images), logits.shape[1]).index_copy_(0, chosen, logits)


def ranked_class(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Return the wrong class with the ``rank``-th (from zero) largest logit; ``(N,)``, int64."""
    order = logits.argsort(dim=1, descending=True)
    place = (order == labels[:, None]).to(torch.uint8).argmax(1, keepdim=True)  # (N, 1): of the right class
    return order.gather(1, rank + (place <= rank).long()).squeeze(1)
