"""CROWN-IBP: certified training with a tighter bound at the start of the ramp."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rampart.bounds import Interval, crown_worst_logits
from rampart.objectives.ibp import IBP


@dataclass(frozen=True)
class CROWNIBP(IBP):
    """Minimise the loss of :class:`IBP` with worst-case logits ``beta CROWN-IBP + (1 - beta) IBP`` (Zhang et al. 2020).

    CROWN-IBP bounds the logits by one backward pass of linear functions (:func:`rampart.bounds.crown_worst_logits`). It
    is tighter than intervals in networks that were not trained for them, and costs about as many backward passes as
    there are classes. Beta moves linearly with eps, from 1 at the start of the ramp to 0 at its end, as in section 3.2.
    Batches of ``target_eps`` then cost no more than with IBP.

    Attributes:
        target_eps: Eps at the end of the ramp, pixel scale, above 0, such as ``"16/255"``.
        clean_weight_start: Kappa at eps 0, in [0, 1].
        clean_weight_end: Kappa from ``target_eps`` on, in [0, 1].
        regularisation: Weight of the regularisers at eps 0; it falls to 0 at ``target_eps``. The authors' is 0.
        tau: Ratio of radii, or of active to inactive neurons, below which the regularisers are above 0.
        l1: Weight of the sum of absolute weights of convolutions and linear layers.
        crown_weight_start: Beta at eps 0, in [0, 1].
        crown_weight_end: Beta from ``target_eps`` on, in [0, 1].

    Raises:
        ValueError: See :class:`IBP`.
        TypeError: See :class:`IBP`.
    """

    crown_weight_start: float = 1.0
    crown_weight_end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crown_weight_start", "crown_weight_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def _crown_weight(self, progress: float) -> float:
        return self.crown_weight_start + progress * (self.crown_weight_end - self.crown_weight_start)

    def _needs_trace(self, progress: float) -> bool:
        return self._crown_weight(progress) > 0

    def _worst_logits(self, interval: Interval, labels: Tensor, progress: float) -> Tensor:
        beta = self._crown_weight(progress)
        worst = interval.worst_logits(labels)
        return worst if beta == 0 else torch.lerp(worst, crown_worst_logits(interval, labels), beta)
