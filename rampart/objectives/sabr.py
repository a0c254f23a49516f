"""SABR: certified training on a small box around an adversarial image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.bounds import Interval, box_logits
from rampart.objectives.ibp import IBP


@dataclass(frozen=True)
class SABR(IBP):
    """Minimise the loss of :class:`IBP` on a small box around the attack's image (Müller et al. 2023, section 3).

    The box has ``box_ratio`` times the width of the ball within [0, 1], and lies inside of it: its centre is the image
    that ``model.attack`` returns, moved inwards as far as needed. Small boxes regularise less than the ball, for a
    higher clean accuracy; the trained networks need tighter bounds than intervals to be certified. Unlike here, the
    authors search for the centre within ``(1 - box_ratio) eps`` alone.

    The training accuracy is that of the worst-case logits of the small box, above the certified one.

    Attributes:
        target_eps: Eps at the end of the ramp, pixel scale, above 0, such as ``"16/255"``.
        clean_weight_start: Kappa at eps 0, in [0, 1].
        clean_weight_end: Kappa from ``target_eps`` on, in [0, 1].
        regularisation: Weight of the regularisers at eps 0; it falls linearly to 0 at ``target_eps``.
        tau: Ratio of radii, or of active to inactive neurons, below which the regularisers are above 0.
        l1: Weight of the sum of absolute weights of convolutions and linear layers.
        box_ratio: Width of the box relative to that of the ball, in [0, 1]; lambda in the paper, which uses 0.4 and 0.6
            on MNIST at eps 0.1 and 0.3. At 1 the loss is that of IBP.

    Raises:
        ValueError: See :class:`IBP`.
        TypeError: See :class:`IBP`.
    """

    box_ratio: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.box_ratio <= 1:
            raise ValueError(f"box_ratio must be in [0, 1], got {self.box_ratio}")

    def _bound(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        eps: float,
        generator: torch.Generator | None,
        trace: bool,
    ) -> Interval:
        adv = attack(network, images, labels, eps, generator=generator)
        lower, upper = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
        radius = self.box_ratio * (upper - lower) / 2
        centre = torch.minimum(torch.maximum(adv, lower + radius), upper - radius)
        return box_logits(network, centre - radius, centre + radius, images, trace)
