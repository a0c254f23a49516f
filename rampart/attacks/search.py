"""Base class of attacks that end the search for an image with the first point that fools the model."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from rampart.attacks.attack import Attack
from rampart.attacks.context import Model, attack_context
from rampart.attacks.eps import Eps
from rampart.attacks.input_gradient import misclassified, predict
from rampart.attacks.validation import check_labels, read_inputs


class Found(NamedTuple):
    """Result of one run.

    Attributes:
        adv: ``(N, ...)``, inside ball and box: a point that fools the model, or else the point with the highest loss.
            The clean image for images that the run did not attack, and where FAB, which has no loss, finds no point.
        fooled: ``(N,)``, bool.
    """

    adv: Tensor
    fooled: Tensor


class Search(Attack):
    """Sequential runs; each attacks only the images that earlier runs did not fool.

    For evaluations: the cost falls with every fooled image. Misclassified clean images are returned unchanged. The
    model is attacked in eval mode and random numbers are drawn for the whole batch, so no image's result depends on
    which others are fooled.
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
        active: Tensor,
        eps: float,
        run: int,
        generator: torch.Generator | None,
    ) -> Found | None:
        """Make one run. Return None to end the search, as when there are no more target classes.

        Args:
            model: In eval mode, its parameters frozen; gradients are on.
            images: ``(N, ...)``, the whole batch, for which random numbers are drawn.
            labels: ``(N,)``, int64.
            active: ``(M,)``, int64, indices of the images to attack; all are classified correctly.
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
            chosen = torch.arange(len(images), device=images.device) if active is None else active.nonzero().squeeze(1)
            logits = predict(model, images[chosen])
            check_labels(labels[chosen], logits)
            chosen = chosen[~misclassified(logits, labels[chosen])]
            for run in range(self.runs):
                if len(chosen) == 0:
                    break
                found = self.run(model, images, labels, chosen, eps, run, generator)
                if found is None:
                    break
                adv[chosen] = found.adv[chosen]
                chosen = chosen[~found.fooled[chosen]]
        return adv


def ranked_class(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Return the wrong class with the ``rank``-th (from zero) largest logit; ``(N,)``, int64."""
    order = logits.argsort(dim=1, descending=True)
    return order[order != labels[:, None]].view(len(labels), -1)[:, rank]
