"""Objectives that can't work with an attack or a network raise before training, in one line."""

from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from lightning_modules import AdversarialClassifier
from rampart.attacks import APGD, FAB, PGD, AtImage, Attack, Level, Square
from rampart.attacks.losses import cross_entropy
from rampart.data import TensorBatches
from rampart.networks import MNISTCNN, GatedMNISTCNN, Normalize, ResNet18
from rampart.objectives import AWP, CROWNIBP, IBP, MTLIBP, SABR, TRADES, AdversarialTraining, Objective, ObjectiveOutput
from tests.rampart.objectives.attacks import Flipped, OneOf

LEFTOVER = AdversarialTraining(leftover_gradient=True)


def with_ranks(inplace: bool = False) -> nn.Module:
    """Return a network with an operation that has no interval bound."""

    class Ranks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    return nn.Sequential(Normalize([0.5], [0.5]), nn.Conv2d(1, 4, 5), nn.Sequential(nn.ReLU(inplace), Ranks()))


INVALID: dict[str, tuple[Objective, Attack, nn.Module, str]] = {
    "trades, apgd": (TRADES(), APGD(), MNISTCNN(), "keeps attacking fooled images, such as PGD .*, got APGD"),
    "trades, targeted apgd": (TRADES(), APGD(targets=9), MNISTCNN(), "loss it can replace"),
    "trades, square": (TRADES(), Square(), MNISTCNN(), "loss it can replace, such as PGD, got Square"),
    "trades, fab": (TRADES(), FAB(), MNISTCNN(), "loss it can replace, such as PGD, got FAB"),
    "trades, from the images": (TRADES(), PGD(start=AtImage()), MNISTCNN(), "no gradient at the clean images"),
    "trades, mixed": (
        TRADES(),
        OneOf((PGD(), PGD(steps=1, relative_step_size=1, start=AtImage()))),
        MNISTCNN(),
        "random start",
    ),
    "trades, stopped": (TRADES(), PGD(stop_when_fooled=True), MNISTCNN(), "PGD without stop_when_fooled, got PGD"),
    "mtl-ibp, l2": (MTLIBP(), PGD(norm="L2"), MNISTCNN(), "l-inf ball, got an attack with the norm L2"),
    "mtl-ibp, no bound": (MTLIBP(), PGD(), with_ranks(), r"no interval bound for sort.*\(in layer 2.1, Ranks\)"),
    "mtl-ibp, leftover": (MTLIBP(adversarial=LEFTOVER), PGD(restarts=2), MNISTCNN(), "leave attack.restarts out"),
    "ibp, l2": (IBP(0.4), PGD(norm="L2"), MNISTCNN(), "IBP bounds the l-inf ball, got an attack with the norm L2"),
    "ibp, no bound": (IBP(0.4), PGD(), with_ranks(), r"no interval bound for sort.*\(in layer 2.1, Ranks\)"),
    "crown-ibp, no bound": (CROWNIBP(0.4), PGD(), with_ranks(), r"no interval bound for sort.*\(in layer 2.1, Ranks"),
    "sabr, l2": (SABR(0.4), PGD(norm="L2"), MNISTCNN(), "SABR bounds the l-inf ball, got an attack with the norm L2"),
    "leftover, restarts": (LEFTOVER, PGD(restarts=2), MNISTCNN(), "leave attack.restarts out, got 2"),
    "leftover, best": (LEFTOVER, PGD(iterate="best"), MNISTCNN(), "leave attack.iterate out, got best"),
    "leftover, linear": (LEFTOVER, PGD(step_schedule="linear"), MNISTCNN(), "leave attack.step_schedule out"),
    "leftover, stopped": (LEFTOVER, PGD(stop_when_fooled=True), MNISTCNN(), "leave attack.stop_when_fooled out"),
    "leftover, margin": (LEFTOVER, PGD(loss="margin"), MNISTCNN(), "leave attack.loss out, got margin"),
    "leftover, dlr": (LEFTOVER, PGD(loss="dlr"), MNISTCNN(), "cross-entropy for attack and training"),
    "leftover, apgd": (LEFTOVER, APGD(), MNISTCNN(), "leftover_gradient needs a PGD.*got APGD"),
    "leftover, custom steps": (LEFTOVER, Flipped(), MNISTCNN(), "leftover_gradient needs a PGD.*got Flipped"),
    "leftover, mixed": (LEFTOVER, OneOf((PGD(),)), MNISTCNN(), "leftover_gradient needs a PGD"),
    "awp, leftover": (AWP(LEFTOVER), PGD(), MNISTCNN(), "AWP gives its objective the images of an attack.*leave left"),
    "awp, leftover in mtl-ibp": (AWP(MTLIBP(adversarial=LEFTOVER)), PGD(), MNISTCNN(), "leave leftover_gradient out"),
    "awp, trades, apgd": (AWP(TRADES()), APGD(), MNISTCNN(), "keeps attacking fooled images, such as PGD .*, got APGD"),
    "leftover, smoothed": (
        AdversarialTraining(loss=nn.CrossEntropyLoss(label_smoothing=0.1), leftover_gradient=True),
        PGD(),
        MNISTCNN(),
        "leave objective.loss out, got CrossEntropyLoss",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_check_raises_one_line_and_changes_nothing(case: str) -> None:
    objective, attack, network, message = INVALID[case]
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=message) as error:
        objective.check(attack, network)
    assert "\n" not in str(error.value)
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_check_accepts_suitable_attacks_and_networks() -> None:
    network = MNISTCNN()
    for attack in (PGD(), PGD(start=Level(0.5, 0.5)), OneOf((PGD(),))):
        TRADES().check(attack, network)
    LEFTOVER.check(PGD(start=AtImage(), loss=cross_entropy), network)
    AdversarialTraining(loss=nn.CrossEntropyLoss(), leftover_gradient=True).check(PGD(), network)
    for any_attack in (FAB(), Square(), APGD(targets=3), PGD(norm="L2", steps=3)):
        AdversarialTraining().check(any_attack, ResNet18())
        MTLIBP(weight=0).check(any_attack, ResNet18())
    for objective in (AdversarialTraining(), TRADES(), MTLIBP(), Clean()):
        AWP(objective).check(PGD(), network)
    for bounded in (network, GatedMNISTCNN(), ResNet18().eval(), nn.Sequential(nn.Flatten(), nn.Linear(784, 3))):
        MTLIBP().check(PGD(), bounded)


def test_check_accepts_a_network_whose_image_shape_cant_be_guessed() -> None:
    MTLIBP().check(PGD(), nn.Sequential(nn.Unflatten(1, (5, 7)), nn.Conv1d(5, 2, 3), nn.Softmax(1)))
    MTLIBP().check(PGD(), nn.Softmax(1))


class Clean(Objective):
    """A custom objective without a check."""

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, *_: Any) -> ObjectiveOutput:
        logits = network(images)
        return ObjectiveOutput(nn.functional.cross_entropy(logits, labels), logits, {})


class Certified(Clean):
    """A custom objective whose loss bounds all images."""

    certifies = True


def test_an_objective_certifies_if_it_says_so_also_inside_awp() -> None:
    assert not any(each.certifies for each in (AdversarialTraining(), TRADES(), Clean(), AWP(Clean())))
    assert Certified().certifies
    assert AWP(Certified()).certifies


def fit(objective: Objective, attack: Attack, callbacks: Any = (), **settings: Any) -> Trainer:
    data = TensorBatches(torch.zeros(8, 1, 28, 28, dtype=torch.uint8), torch.arange(8), batch_size=2)
    module = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 0.1, attack, objective=objective)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **settings,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def test_fit_checks_the_objective_before_the_first_batch() -> None:
    with pytest.raises(TypeError, match="loss it can replace"):
        fit(TRADES(), Square())
    assert fit(Clean(), Square()).global_step == 2
    assert fit(AWP(Clean()), Square()).global_step == 2


def test_the_leftover_gradient_raises_with_accumulation() -> None:
    for settings in ({"accumulate_grad_batches": 2}, {"callbacks": [GradientAccumulationScheduler({0: 1, 3: 4})]}):
        for objective in (LEFTOVER, MTLIBP(adversarial=LEFTOVER), AWP(LEFTOVER, gamma=0)):
            with pytest.raises(ValueError, match=r"set trainer.accumulate_grad_batches to 1, got [24]"):
                fit(objective, PGD(steps=1), **settings)
    assert fit(AdversarialTraining(), PGD(steps=1), accumulate_grad_batches=2).global_step == 2
    assert fit(LEFTOVER, PGD(steps=1)).global_step == 2
