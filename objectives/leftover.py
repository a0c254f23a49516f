"""The leftover gradient: weights' gradients of an attack's last step, in the published code part of every update."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks import NORMS, PGD, Attack
from attacks.checks import check_labels
from attacks.context import attack_context
from attacks.losses import LOSSES, cross_entropy
from attacks.outputs import logits_of

NEEDS = (
    "leftover_gradient needs a PGD with one run, constant steps, its last iterate, no stop when fooled, no blocks, and "
    "the cross-entropy for attack and training: "
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
        "block_sides": ((1,) * len(attack.block_sides),),
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
    steps, step_size = attack.steps_at(eps), attack.step_size_at(eps)
    all_but_last = replace(attack, steps=max(steps - 1, 0), step_size=step_size, relative_step_size=None)
    adv = all_but_last(network, images, labels, eps, generator=generator)
    if steps == 0 or len(images) == 0:
        return adv, images.new_zeros(())
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    with attack_context(network, attack.batchnorm, images.device.type):
        of_images, of_weights = _last_gradients(network, adv.detach().clone(), labels.clone(), weights)
    norm = NORMS[attack.norm]
    adv = norm.project(norm.steepest_step(of_images, step_size).add_(adv), images, eps)
    gradient_alone = [
        ((weight - weight.detach()) * grad).sum() for weight, grad in zip(weights, of_weights, strict=True)
    ]
    return adv, torch.stack(gradient_alone).sum() if gradient_alone else images.new_zeros(())


def _last_gradients(
    network: nn.Module, adv: Tensor, labels: Tensor, weights: Sequence[nn.Parameter]
) -> tuple[Tensor, list[Tensor]]:
    """Differentiate the loss with respect to the images, as the attack does, and its mean to the weights."""
    for weight in weights:
        weight.requires_grad_()  # The context has frozen them, and puts this back too.
    logits = logits_of(network, adv.requires_grad_())
    check_labels(labels, logits)
    loss = cross_entropy(logits, labels).sum()
    inputs = [adv, *weights]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else (None,) * len(inputs)
    of_images, *of_weights = (torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True))
    return of_images.nan_to_num(nan=0.0), [grad / len(adv) for grad in of_weights]


def _settings(loss: nn.CrossEntropyLoss) -> tuple[object, ...]:
    return loss.weight, loss.ignore_index, loss.reduction, loss.label_smoothing
