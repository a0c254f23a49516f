"""The leftover gradient: that of the weights in the attack's last step, which the published code adds to updates."""

import torch
from torch import Tensor, nn

from rampart.attacks import PGD, Attack
from rampart.attacks.losses import LOSSES

NEEDS = (
    "leftover_gradient needs a PGD with one run, constant steps, its last iterate, no stop when fooled, an "
    "unchanged step_gradient, and the cross-entropy for attack and training: "
)


def check_leftover(attack: Attack, loss: nn.Module | None) -> PGD:
    """Check that the attack and the training loss are those of the published loop.

    Args:
        attack: The inner maximisation.
        loss: Training loss; the mean cross-entropy if None.

    Returns:
        The attack.

    Raises:
        TypeError: If they are not; the message names the first setting that differs.
    """
    if loss is not None and (type(loss) is not nn.CrossEntropyLoss or _settings(loss) != _settings(type(loss)())):
        raise TypeError(f"{NEEDS}leave objective.loss out, got {loss}")
    if not isinstance(attack, PGD) or type(attack).step_gradient is not PGD.step_gradient:
        raise TypeError(f"{NEEDS}got {attack}")
    for name, allowed in {
        "restarts": (1,),
        "step_schedule": ("constant",),
        "iterate": ("last",),
        "stop_when_fooled": (False,),
        "loss": ("cross_entropy", LOSSES["cross_entropy"]),
    }.items():
        value = getattr(attack, name)
        if value not in allowed:
            raise TypeError(f"{NEEDS}leave attack.{name} out, got {getattr(value, '__qualname__', value)}")
    return attack


def attack_with_leftover(
    attack: PGD, network: nn.Module, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Attack, and return the weights' gradient from the backward pass of the last step.

    Args:
        attack: An attack that :func:`check_leftover` accepts.
        network: In train mode.
        images: ``(N, ...)``, float, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        eps: Radius, pixel scale, above 0.
        generator: Source of the random start; the global one if None.

    Returns:
        The adversarial images, and a scalar to add to the loss: its value is 0, and its gradient is that of the mean
        loss at the last but one iterate.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    adv, gradients = attack.with_weight_gradient(network, images, labels, eps, weights, generator)
    gradient_alone = [
        ((weight - weight.detach()) * grad).sum()
        for weight, grad in zip(weights, gradients, strict=True)
        if grad is not None
    ]
    return adv, torch.stack(gradient_alone).sum() if gradient_alone else images.new_zeros(())


def _settings(loss: nn.CrossEntropyLoss) -> tuple[object, ...]:
    return loss.weight, loss.ignore_index, loss.reduction, loss.label_smoothing
