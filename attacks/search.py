"""Attacks that look for one point that fools the model, and leave an image alone once they have it."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.checks import check_images, check_labels
from attacks.context import Model, attack_context
from attacks.eps import Eps, parse_eps
from attacks.outputs import logits_of


class Found(NamedTuple):
    """What one run found.

    Attributes:
        adv: ``(N, ...)``, inside ball and box: a fooling point, or where there is none the worst that the run saw; the
            image itself for an attack that has no worst, as FAB.
        fooled: ``(N,)``, bool.
    """

    adv: Tensor
    fooled: Tensor


class Search(Attack):
    """Several runs, each on the images that all runs before it left standing.

    For evaluations: the cost falls with every image that is fooled. An image that the model answers wrongly as it is
    comes back as it is. The model is attacked in eval mode, so no image depends on the others of its batch, except
    that they share one stream of random draws.
    """

    @property
    @abstractmethod
    def runs(self) -> int:
        """Number of runs: restarts or target classes."""

    @abstractmethod
    def run(
        self, model: Model, images: Tensor, labels: Tensor, eps: float, run: int, generator: torch.Generator | None
    ) -> Found | None:
        """Make one run; None ends the search, as where there are no more classes to aim at.

        Args:
            model: In eval mode, its parameters frozen; gradients are on.
            images: ``(N, ...)``, all of them answered rightly.
            labels: ``(N,)``, int64.
            eps: Above 0.
            run: Zero-based.
            generator: Source of the random draws.
        """

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See :meth:`attacks.Attack.__call__`: a point that fools the model, or else the worst that the last run saw.

        Raises:
            ValueError: If eps, the images' range or the labels are not as stated.
            TypeError: If the images are neither float32 nor float64.
        """
        eps = parse_eps(eps, self.norm)
        check_images(images, labels)
        if eps == 0 or images.shape[0] == 0:
            return images
        with attack_context(model, "eval", images.device.type):
            # Tensors from inference mode take no part in autograd; their clones do.
            images, labels = images.detach().clone(), labels.clone()
            logits = answers(model, images)
            check_labels(labels, logits)
            adv = images.clone()
            standing = (logits.argmax(1) == labels).nonzero().squeeze(1)
            for run in range(self.runs):
                if len(standing) == 0:
                    break
                found = self.run(model, images[standing], labels[standing], eps, run, generator)
                if found is None:
                    break
                adv[standing] = found.adv
                standing = standing[~found.fooled]
        return adv


def answers(model: Model, images: Tensor) -> Tensor:
    """Logits ``(N, C)``, at least float32, without a graph."""
    with torch.no_grad():
        return logits_of(model, images)


def ranked_class(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong class that comes ``rank``-th (from zero) in the order of the logits; ``(N,)``, int64."""
    order = logits.argsort(dim=1, descending=True)
    return order[order != labels[:, None]].view(len(labels), -1)[:, rank]
