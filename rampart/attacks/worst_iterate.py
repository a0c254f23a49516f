"""Keep the worst iterate of each image: one that fools the model, or else the one with the highest loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class WorstIterate:
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

    def keep(self, index: Tensor, adv: Tensor, fooled: Tensor, loss: Tensor) -> None:
        """Keep the worse of the stored and the new candidate for each image in ``index``."""
        loss = loss.to(self.loss.dtype).nan_to_num(nan=-torch.inf)
        worse = torch.where(fooled == self.fooled[index], loss > self.loss[index], fooled)
        self.adv.index_copy_(0, index, torch.where(worse.view(-1, *[1] * (adv.ndim - 1)), adv, self.adv[index]))
        self.loss.index_copy_(0, index, torch.where(worse, loss, self.loss[index]))
        self.fooled.index_copy_(0, index, fooled | self.fooled[index])
