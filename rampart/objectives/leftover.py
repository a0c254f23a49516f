"""The leftover gradient: weights' gradients of an attack's last step, in the published code part of every update."""

import torch
from torch import Tensor, nn

from rampart.attacks import PGD, Attack
from rampart.attacks.losses import LOSSES

NEEDS = (
    "leftover_gradient needs a PGD with one run, constant steps, its last iterate, no stop when fooled, and the "
    "cross-entropy for attack and training: "
)


def check_leftover(attack: Attack, loss: nn.Module | None) -> PGD:
    """Refuse an attack or a loss of training that the published loop does not have.

    Args:
        attack: The inner maximisation.
        loss: Of training; the mean cross-entropy if None.

    Returns:
        The attack.

    Raises:
        TypeError: With the first setting that is not as it needs it.
    """
    if loss is not None and (type(loss) is not nn.CrossEntropyLoss or _settings(loss) != _settings(type(loss)())):
        raise TypeError(f"{NEEDS}leave objective.loss out, got {loss}")
    if not isinstance(attack, PGD):
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
    """Attack, and take the gradient of the weights from the last step's own pass.

    Args:
        attack: One that :func:`check_leftover` lets pass.
        network: In train mode.
        images: ``(N, ...)``, float, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        eps: Radius, pixel scale, above 0.
        generator: Source of the random start.

    Returns:
        Adversarial images, the attack's own, and a scalar to add to the loss: its value is 0, its gradient that of
        the mean loss at the last but one iterate.
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
