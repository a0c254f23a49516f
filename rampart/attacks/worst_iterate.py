"""Keep the worst iterate of each image: one that fools the model, or else the one with the highest loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from rampart.attacks.norms import per_image


class WorstIterate(NamedTuple):
    """Worst iterate of each image so far: one that fools the model, or else the one with the highest loss.

    Attributes:
        adv: ``(N, ...)``, the points.
        fooled: ``(N,)``, bool, True if the point fools the model.
        loss: ``(N,)``, loss at the points, at least float32; -inf before the first.
    """

    adv: Tensor
    fooled: Tensor
    loss: Tensor

    @classmethod
    def begin(cls, adv: Tensor) -> "WorstIterate":
        """Return ``adv`` as the points, before the model has seen them."""
        n = len(adv)
        dtype = torch.promote_types(adv.dtype, torch.float32)
        return cls(adv.clone(), adv.new_zeros(n, dtype=torch.bool), adv.new_full((n,), -torch.inf, dtype=dtype))

    def keep(self, adv: Tensor, fooled: Tensor, loss: Tensor, rows: Tensor | None = None) -> None:
        """Keep the worse of the stored and the new candidate for each image, in place.

        Args:
            adv: ``(N, ...)``, the new points.
            fooled: ``(N,)``, bool, True if the new point fools the model.
            loss: ``(N,)``, loss at the new points.
            rows: ``(N,)``, bool, the images that have a new candidate; all if None.
        """
        loss = loss.to(self.loss.dtype).nan_to_num(nan=-torch.inf)
        worse = torch.where(fooled == self.fooled, loss > self.loss, fooled)
        worse = worse if rows is None else worse & rows
        self.adv.copy_(torch.where(per_image(worse, adv), adv, self.adv))
        self.loss.copy_(torch.where(worse, loss, self.loss))
        self.fooled.logical_or_(worse & fooled)
