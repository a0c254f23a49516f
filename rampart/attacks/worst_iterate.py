"""The worst of the points that a run has seen, for each image."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Worst:
    """For each image, the candidate that is worst for the model: fooled first, then highest loss."""

    adv: Tensor
    fooled: Tensor
    loss: Tensor

    @classmethod
    def at(cls, adv: Tensor) -> "Worst":
        """Before anything is known: not fooled, lowest loss."""
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
