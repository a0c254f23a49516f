"""Any box of inputs as an l-inf ball, to certify or to attack: an affine first layer maps the unit cube to the box."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rampart.attacks import Attack
from rampart.bounds.certificates import Method, certified_mask


class BoxNetwork(nn.Module):
    """A network behind a layer that maps the unit cube to a box of inputs.

    The box's middle is at 0.5 everywhere, so the whole box is the l-inf ball of radius 0.5 around it. A pixel whose
    bounds are equal stays constant.

    Args:
        network: Maps inputs ``(N, ...)`` to logits ``(N, C)``.
        lower: Lower bounds of one input, ``(...)``.
        upper: Upper bounds, likewise.
    """

    def __init__(self, network: nn.Module, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("lower", lower)
        self.register_buffer("width", upper - lower)
        self.register_buffer("upper", upper)
        self.lower: Tensor
        self.width: Tensor
        self.upper: Tensor

    def forward(self, units: Tensor) -> Tensor:
        """Return logits ``(N, C)`` for points of the unit cube ``(N, ...)``."""
        logits: Tensor = self.network(self.lower + self.width * units)
        return logits

    def to_box(self, units: Tensor) -> Tensor:
        """Return the inputs of points of the unit cube, never outside the box by rounding."""
        return torch.minimum(torch.maximum(self.lower + self.width * units, self.lower), self.upper)


@dataclass(frozen=True)
class Counterexample:
    """Misclassified point of a box.

    Attributes:
        attack: Name of the attack that found it.
        point: ``(...)``, inside the box to the last bit.
        margin: Largest other logit minus the label's at the point, in float64: at least 0.
    """

    attack: str
    point: Tensor
    margin: float


def certify_box(network: nn.Module, lower: Tensor, upper: Tensor, label: int, method: Method) -> bool:
    """Return True if a bound proves that the network predicts one class in the whole box.

    Args:
        network: Maps inputs ``(N, ...)`` to logits ``(N, C)``, in eval mode.
        lower: Lower bounds of one input, ``(...)``.
        upper: Upper bounds, likewise.
        label: The class.
        method: The bound.
    """
    boxed = BoxNetwork(network, lower, upper).eval()
    middle = lower.new_full((1, *lower.shape), 0.5)
    return bool(certified_mask(boxed, middle, torch.tensor([label]), 0.5, methods=[method]))


def attack_box(
    network: nn.Module,
    lower: Tensor,
    upper: Tensor,
    label: int,
    attacks: Sequence[Attack],
    starts: int,
    seed: int,
) -> Counterexample | None:
    """Search a box for a misclassified point; it counts if float64 arithmetic confirms it.

    Args:
        network: Maps inputs ``(N, ...)`` to logits ``(N, C)``; not changed.
        lower: Lower bounds of one input, ``(...)``.
        upper: Upper bounds, likewise.
        label: Class that every point of the box should have.
        attacks: Attacks of norm Linf, each run if the ones before it found nothing.
        starts: Number of copies of the box that one call attacks at once, each from its own random point.
        seed: Seed of the random starts.

    Returns:
        The point with the largest margin, or None.
    """
    boxed = BoxNetwork(network, lower, upper).eval()
    middle = lower.new_full((starts, *lower.shape), 0.5)
    labels = torch.full((starts,), label, device=lower.device)
    generator = torch.Generator(lower.device).manual_seed(seed)
    for attack in attacks:
        points = boxed.to_box(attack(boxed, middle, labels, 0.5, generator=generator))
        margins = measure_margins(network, points, labels)
        best = int(margins.argmax())
        if margins[best] >= 0:
            return Counterexample(attack.name, points[best], margins[best].item())
    return None


def measure_margins(network: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus the label's, ``(N,)``, computed in float64."""
    with torch.no_grad():
        logits = deepcopy(network).double()(points.double())
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    margins: Tensor = others.amax(1) - own.squeeze(1)
    return margins
