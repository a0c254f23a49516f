"""Signs that an evaluation says more of its attacks than of the model: what a report warns of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.attacks.context import attack_context
from rampart.attacks.input_gradient import loss_gradient
from rampart.attacks.logits import logits_of
from rampart.attacks.random import generator_for
from rampart.evaluation.clean_pass import Probe
from rampart.evaluation.results import WorstCase

GRADIENT_FREE = ("Square",)
MIN_SHARE = 0.1  # share of images from which on a sign counts


@dataclass(frozen=True)
class Sign:
    """A sign that an evaluation can't be believed.

    Attributes:
        name: Which.
        message: What was seen, what it means, and what to do.
        images: The images that show it, by their place in the set.
    """

    name: str
    message: str
    images: list[int] = field(default_factory=list)


def find_masking_signs(model: nn.Module, probe: Probe, found: WorstCase, attacks: Sequence[str]) -> list[Sign]:
    """Look for signs of masked gradients and of models that can't be attacked as they are (Carlini et al. 2019).

    Args:
        model: Maps images to logits ``(N, C)``; as it was evaluated.
        probe: The images to look at.
        found: Of all the images.
        attacks: The names of the attacks, by the numbers in ``found.attack``.
    """
    probed, aims, right = probe
    if signs := _modes(model):
        return signs  # To ask such a model would change it.
    signs += _constant(found)
    if len(right) == 0:
        return [*signs, Sign("nothing right", "no image is answered rightly as it is: are the weights the model's?")]
    signs += _outputs(model, probed, right)
    signs += _batches(model, probed, right)
    signs += _gradients(model, probed, aims, right)
    signs += _unbounded(model, probed, aims, right)
    return signs + _gradient_free(found, attacks)


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model, images)


def _modes(model: nn.Module) -> list[Sign]:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if not training:
        return []
    return [Sign("train mode", f"{len(training)} modules are in train mode ({training[0]}, ...): call model.eval()")]


def _outputs(model: nn.Module, images: Tensor, index: Tensor) -> list[Sign]:
    first, again = _answers(model, images), _answers(model, images)
    signs = []
    differ = (first - again).abs().amax(1) > 1e-4 * first.abs().amax(1).clamp_min(1e-12)
    if bool(differ.any()):
        message = (
            f"{int(differ.sum())} of {len(index)} images get other logits when asked again: gradients of one draw say "
            "little; attack the mean of many (EOT)"
        )
        signs.append(Sign("randomised", message, index[differ.cpu()].tolist()))
    if bool(((first >= -1e-6) & ((first.sum(1, keepdim=True) - 1).abs() < 1e-4)).all()):
        message = "the outputs are probabilities: their gradients vanish where the model is sure; return logits"
        signs.append(Sign("softmax", message))
    return signs


def _batches(model: nn.Module, images: Tensor, index: Tensor) -> list[Sign]:
    if len(index) < 2:
        return []
    whole = _answers(model, images).argmax(1)
    parts = torch.cat([_answers(model, images[start::2]).argmax(1) for start in (0, 1)])
    other = whole != parts[torch.cat([torch.arange(len(index))[start::2] for start in (0, 1)]).argsort()]
    if not bool(other.any()):
        return []
    message = (
        f"{int(other.sum())} of {len(index)} images are answered otherwise in other company, so eps 0 is not clean: "
        "does BatchNorm normalise by the batch?"
    )
    return [Sign("batch-dependent", message, index[other.cpu()].tolist())]


def _constant(found: WorstCase) -> list[Sign]:
    answers, labels = found.clean_class.bincount(), found.labels.bincount()
    share = answers.max().item() / len(found.clean_class)
    if share < 1 - MIN_SHARE / 2 or labels.max().item() / len(found.labels) >= share:
        return []
    message = (
        f"{share:.0%} of the images get one answer, {int(answers.argmax())}: is the normalisation the one that the "
        "model was trained with?"
    )
    return [Sign("constant", message)]


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> list[Sign]:
    with attack_context(model, "eval", images.device.type):
        _, _, grad = loss_gradient(model, images.clone(), lambda x: F.cross_entropy(x, labels, reduction="none"))
    zero = grad.flatten(1).abs().amax(1) == 0
    if zero.float().mean() < MIN_SHARE:
        return []
    message = (
        f"{int(zero.sum())} of {len(index)} images have a gradient of exactly zero, which no attack by gradient can "
        "follow: scale the logits or attack the margin, and run Square"
    )
    return [Sign("zero gradients", message, index[zero.cpu()].tolist())]


def _unbounded(model: nn.Module, images: Tensor, labels: Tensor, index: Tensor) -> list[Sign]:
    attack = PGD(steps=40, loss="margin", iterate="best", stop_when_fooled=True)
    try:
        adv = attack(model, images, labels, 1.0, generator=generator_for(images.device, "unbounded"))
    except ValueError as error:  # As for logits that are not finite, so far from the images.
        return [Sign("unbounded eps", f"PGD fails where every pixel may take any value: {error}")]
    stands = _answers(model, adv).argmax(1) == labels
    if stands.float().mean() < MIN_SHARE:
        return []
    message = (
        f"{int(stands.sum())} of {len(index)} images stand under PGD where every pixel may take any value: it does not "
        "find what must be there"
    )
    return [Sign("unbounded eps", message, index[stands.cpu()].tolist())]


def _gradient_free(found: WorstCase, attacks: Sequence[str]) -> list[Sign]:
    numbers = [number for number, name in enumerate(attacks) if name.startswith(GRADIENT_FREE)]
    if len(numbers) == len(attacks):
        return []
    fooled = torch.isin(found.attack, torch.tensor(numbers, device=found.attack.device)).nonzero().squeeze(1)
    if len(fooled) <= 0.002 * len(found.labels):  # AutoAttack's own threshold
        return []
    names = ", ".join(attacks[number] for number in numbers)
    message = (
        f"{len(fooled)} of {len(found.labels)} images fall to no attack but {names}, which asks for no gradient: "
        "gradients are masked and what stands is an upper bound; attack longer and from elsewhere"
    )
    return [Sign("gradient-free", message, fooled.tolist())]
