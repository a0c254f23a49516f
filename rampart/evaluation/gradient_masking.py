"""Checks for gradient masking and other signs of an unreliable evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.attacks.context import attack_context
from rampart.attacks.input_gradient import loss_gradient, predict
from rampart.attacks.random import make_generator
from rampart.evaluation.clean_pass import Probe
from rampart.evaluation.results import WorstCase

GRADIENT_FREE = ("Square",)  # beginnings of the names of attacks that use no gradients
MIN_SHARE = 0.1  # share of images at which a sign is reported


@dataclass(frozen=True)
class Sign:
    """A sign that an evaluation is unreliable.

    Attributes:
        name: Short name for reports.
        message: Observation, meaning and remedy.
        images: Zero-based indices in the data set of the images that show it.
    """

    name: str
    message: str
    images: list[int] = field(default_factory=list)


def find_masking_signs(model: nn.Module, probe: Probe, found: WorstCase, attacks: Sequence[str]) -> list[Sign]:
    """Look for signs of masked gradients and of models that attacks can't handle (Carlini et al. 2019).

    Args:
        model: The evaluated model, in the mode of the evaluation. Maps images to logits ``(N, C)``.
        probe: Correctly classified images, with which the model is checked.
        found: Results for all images.
        attacks: Names of the attacks, in the order of the numbers in ``found.attack``.
    """
    images, labels, index = probe
    if signs := _check_mode(model):
        return signs  # A forward pass in train mode would change the model.
    signs += _check_constant(found)
    if len(index) == 0:
        message = "no clean image is classified correctly: were the weights trained for this network?"
        return [*signs, Sign("no correct predictions", message)]
    signs += _check_outputs(model, images, index)
    signs += _check_batch_dependence(model, images, index)
    signs += _check_gradients(model, images, labels, index)
    signs += _check_unbounded_eps(model, images, labels, index)
    return signs + _check_gradient_free(found, attacks)


def _check_mode(model: nn.Module) -> list[Sign]:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if not training:
        return []
    return [Sign("train mode", f"{len(training)} modules are in train mode ({training[0]}, ...): call model.eval()")]


def _check_outputs(model: nn.Module, images: Tensor, index: Tensor) -> list[Sign]:
    first, again = predict(model, images), predict(model, images)
    signs = []
    differ = (first - again).abs().amax(1) > 1e-4 * first.abs().amax(1).clamp_min(1e-12)
    if bool(differ.any()):
        message = (
            f"{int(differ.sum())} of {len(index)} images get other logits in a second forward pass: a single gradient "
            "is unreliable; attack the mean of many passes (EOT)"
        )
        signs.append(Sign("randomised", message, index[differ.cpu()].tolist()))
    if bool(((first >= -1e-6) & ((first.sum(1, keepdim=True) - 1).abs() < 1e-4)).all()):
        message = "the outputs are probabilities, whose gradients vanish where the model is confident: return logits"
        signs.append(Sign("softmax", message))
    return signs


def _check_batch_dependence(model: nn.Module, images: Tensor, index: Tensor) -> list[Sign]:
    if len(index) < 2:
        return []
    whole = predict(model, images).argmax(1)
    parts = torch.cat([predict(model, images[start::2]).argmax(1) for start in (0, 1)])
    other = whole != parts[torch.cat([torch.arange(len(index))[start::2] for start in (0, 1)]).argsort()]
    if not bool(other.any()):
        return []
    message = (
        f"{int(other.sum())} of {len(index)} predictions change with the other images in the batch, so eps 0 differs "
        "from clean: does BatchNorm normalise by batch statistics?"
    )
    return [Sign("batch-dependent", message, index[other.cpu()].tolist())]


def _check_constant(found: WorstCase) -> list[Sign]:
    predicted, labels = found.clean_class.bincount(), found.labels.bincount()
    share = predicted.max().item() / len(found.clean_class)
    if share < 1 - MIN_SHARE / 2 or labels.max().item() / len(found.labels) >= share:
        return []
    message = (
        f"{share:.0%} of the images are classified as {int(predicted.argmax())}: is the normalisation the one that the "
        "model was trained with?"
    )
    return [Sign("constant", message)]


def _check_gradients(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> list[Sign]:
    with attack_context(model, "eval", images.device.type):
        _, _, grad = loss_gradient(model, images.clone(), lambda x: F.cross_entropy(x, labels, reduction="none"))
    zero = grad.flatten(1).abs().amax(1) == 0
    if zero.float().mean() < MIN_SHARE:
        return []
    message = (
        f"{int(zero.sum())} of {len(index)} images have a gradient of exactly zero, which no gradient-based attack can "
        "follow: scale the logits or attack the margin, and run Square"
    )
    return [Sign("zero gradients", message, index[zero.cpu()].tolist())]


def _check_unbounded_eps(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> list[Sign]:
    attack = PGD(steps=40, loss="margin", iterate="best", stop_when_fooled=True)
    try:
        adv = attack(model, images, labels, 1.0, generator=make_generator(images.device, "unbounded"))
    except ValueError as error:  # For example, logits so far from the images may not be finite.
        return [Sign("unbounded eps", f"PGD fails where every pixel may take any value: {error}")]
    robust = predict(model, adv).argmax(1) == labels
    if robust.float().mean() < MIN_SHARE:
        return []
    message = (
        f"{int(robust.sum())} of {len(index)} images are robust under PGD where every pixel may take any value: the "
        "attack misses adversarial images that must exist"
    )
    return [Sign("unbounded eps", message, index[robust.cpu()].tolist())]


def _check_gradient_free(found: WorstCase, attacks: Sequence[str]) -> list[Sign]:
    numbers = [number for number, name in enumerate(attacks) if name.startswith(GRADIENT_FREE)]
    if len(numbers) == len(attacks):
        return []
    fooled = torch.isin(found.attack, torch.tensor(numbers, device=found.attack.device)).nonzero().squeeze(1)
    if len(fooled) <= 0.002 * len(found.labels):  # AutoAttack's own threshold
        return []
    names = ", ".join(attacks[number] for number in numbers)
    message = (
        f"{len(fooled)} of {len(found.labels)} images are fooled only by {names}, which uses no gradients: gradients "
        "are masked, and the robust accuracy is an upper bound; use more steps, restarts and queries"
    )
    return [Sign("gradient-free", message, fooled.tolist())]
