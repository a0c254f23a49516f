"""Certified accuracy in validation and test: when it is measured, and that it is that of each image's bounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from callbacks import AveragedWeights
from lightning_modules import AdversarialClassifier, evaluation_steps
from lightning_modules.certified_accuracy import check_robust
from rampart.attacks import PGD, NamedAttack, format_eps
from rampart.bounds import certified_mask, interval_logits
from rampart.data import TensorBatches
from rampart.networks import GatedMNISTCNN
from rampart.objectives import AWP, AdversarialTraining, Objective, ObjectiveOutput
from tests.lightning_modules.test_evaluation_steps import IMAGES, make_loader, run

PGD_1, L2 = PGD(steps=1), PGD(norm="L2", steps=1)
ROWS = (NamedAttack(PGD_1, 0.3), NamedAttack(PGD(steps=2), "60/255"), NamedAttack(L2, 0.1))


class Bound(Objective):
    """Minimise the cross-entropy of the bounds on all images in the ball."""

    certifies = True

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, attack: Any, eps: float, generator: Any = None
    ) -> ObjectiveOutput:
        bounds = interval_logits(network, images, eps, images)
        assert bounds.clean is not None
        loss = nn.functional.cross_entropy(bounds.worst_logits(labels), labels)
        return ObjectiveOutput(loss, bounds.clean, {"bound_loss": loss})


def small() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


LABELS = small().eval()(IMAGES).argmax(1).where(torch.arange(12) != 5, 0)  # all but one are classified correctly


def classifier(network: nn.Module | None = None, **settings: Any) -> Any:
    network = small() if network is None else network
    defaults: dict[str, Any] = {"eps": 0.3, "attack": PGD_1, "val_attack": PGD_1, "test_attacks": ROWS}
    return AdversarialClassifier(network, **(defaults | settings))


def certified_by_hand(network: nn.Module, eps: float, images: Tensor = IMAGES, labels: Tensor = LABELS) -> float:
    worst = interval_logits(network.eval(), images, eps).worst_logits(labels)
    others = worst.scatter(1, labels[:, None], -torch.inf).amax(1)
    assert (others.abs() > 1e-4).all()  # rounding decides for no image
    return (others < 0).float().mean().item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_and_test_measure_certified_accuracy(precision: Any, inference_mode: bool) -> None:
    settings: dict[str, Any] = {"precision": precision, "inference_mode": inference_mode}
    (validated,) = run("validate", classifier(certify=True), make_loader(IMAGES, LABELS), **settings)
    (tested,) = run("test", classifier(certify=True), make_loader(IMAGES, LABELS), **settings)
    smaller, larger = (certified_by_hand(small(), eps) for eps in (60 / 255, 0.3))
    assert 0 < larger < smaller < 1
    assert validated["val/certified_acc"] == pytest.approx(larger)
    found = {name: value for name, value in tested.items() if "certified" in name}
    masks = {eps: certified_mask(small().eval(), IMAGES, LABELS, eps) for eps in (60 / 255, 0.3)}
    expected = {f"test/certified_acc/{format_eps(eps)}": mask.float().mean().item() for eps, mask in masks.items()}
    assert found == pytest.approx(expected)
    assert smaller <= found["test/certified_acc/60/255"] <= tested["test/robust_acc/PGD-2 @ 60/255"]
    assert larger <= found["test/certified_acc/0.3"] <= tested["test/robust_acc/PGD-1 @ 0.3"]


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({}, False),
        ({"objective": Bound()}, True),
        ({"objective": AWP(Bound())}, True),
        ({"objective": Bound(), "certify": False}, False),
        ({"objective": AdversarialTraining(), "certify": True}, True),
        ({"objective": Bound(), "attack": L2, "val_attack": L2}, False),
        ({"objective": Bound(), "test_attacks": ROWS[2:]}, False),
    ],
)
def test_it_is_measured_if_the_objective_certifies_or_by_option(settings: Any, measured: bool) -> None:
    tested = run("test", classifier(**settings), make_loader(IMAGES, LABELS))[0]
    assert any("certified" in name for name in tested) is measured


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"objective": AWP(Bound())}, "val/certified_acc"),
        ({"objective": Bound(), "certify": False}, "val/robust_acc"),
        ({"objective": Bound(), "attack": L2, "val_attack": L2}, "val/robust_acc"),
        ({"certify": True}, "val/robust_acc"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_training_is_for(settings: Any, metric: str) -> None:
    assert classifier(**settings).selection_metric == metric


class Ranks(nn.Module):
    """An operation without a bound."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_network_or_norm_without_bounds_is_one_line_if_it_is_asked_for(command: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), Ranks())
    message = r"^model\.certify true is not possible: no interval bound for sort \(in layer 2, Ranks\); leave it out$"
    with pytest.raises(ValueError, match=message):
        run(command, classifier(network, certify=True), make_loader(IMAGES, LABELS))
    message = r"bounds are in the norm Linf, and model\.attack has the norm L2"
    with pytest.raises(ValueError, match=message):
        run(command, classifier(attack=L2, val_attack=L2, certify=True), make_loader(IMAGES, LABELS))
    if command != "fit":
        (result,) = run(command, classifier(network, objective=Bound()), make_loader(IMAGES, LABELS))
        assert not any("certified" in name for name in result)


def test_the_modes_of_the_network_are_kept() -> None:
    module = classifier(certify=True, attack=PGD_1)
    module.network[2].eval()
    run("fit", module, make_loader(IMAGES, LABELS))
    assert [layer.training for layer in module.network] == [True, True, False, True, True]


def test_a_gated_network_is_bounded_in_its_training_form() -> None:
    torch.manual_seed(0)
    network = GatedMNISTCNN()
    images = (torch.rand(20, 1, 28, 28) > 0.5).float()
    labels = network(images).argmax(1)
    module = classifier(network, eps=0.4, certify=True, test_attacks=())
    (validated,) = run("validate", module, TensorBatches((images * 255).byte(), labels, batch_size=10))
    assert certified_by_hand(network.plain(), 0.4, images, labels) == 0
    assert validated["val/certified_acc"] == certified_by_hand(network, 0.4, images, labels) == 1


class Weights(Callback):
    """Record the certified accuracy of the weights that are validated."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert float(pl_module.val_certified_acc.compute()) == pytest.approx(certified_by_hand(pl_module.network, 0.3))
        self.seen.append(float(pl_module.val_certified_acc.compute()))


def test_validation_bounds_the_averaged_weights() -> None:
    module, weights = classifier(objective=Bound(), optimizer=torch.optim.Adam), Weights()
    module._optimizer = lambda parameters: torch.optim.Adam(parameters, 0.05)
    callbacks = [AveragedWeights(0.9, warm_up=False), weights]
    run("fit", module, make_loader(IMAGES, LABELS), max_epochs=4, num_sanity_val_steps=0, callbacks=callbacks)
    assert len(weights.seen) == 4
    assert module.trainer.callback_metrics["val/certified_acc"] == pytest.approx(certified_by_hand(module.network, 0.3))


def test_a_certified_image_that_is_fooled_is_an_error(monkeypatch: Any) -> None:
    everything = torch.ones(12, dtype=torch.bool)
    fooled = everything.clone()
    fooled[:2] = False
    rows = [(NamedAttack(PGD_1, 0.2), everything), (NamedAttack(L2, 0.1), fooled), (NamedAttack(PGD_1, 0.3), fooled)]
    check_robust(everything, 0.2, rows, "batch 0 of test")
    with pytest.raises(ValueError, match=r"2 images of batch 0 of test are certified at eps 0\.3 and fooled by PGD-1"):
        check_robust(everything, 0.3, rows, "batch 0 of test")
    monkeypatch.setattr(evaluation_steps, "certified_mask", lambda *_, **__: everything)
    with pytest.raises(ValueError, match="is broken, no number is reported: 1 images of batch 0 of val are certified"):
        run("validate", classifier(certify=True), make_loader(IMAGES, LABELS, batch_size=12))


def test_a_checkpoint_keeps_the_option(tmp_path: Path) -> None:
    module = classifier(certify=True)
    run("fit", module, make_loader(IMAGES, LABELS), default_root_dir=tmp_path)
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert AdversarialClassifier.load_from_checkpoint(tmp_path / "last.ckpt").certify is True
