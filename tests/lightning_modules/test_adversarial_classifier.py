from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader

from lightning_modules import AdversarialClassifier, CIFARClassifier, MNISTClassifier
from rampart.attacks import PGD, AtImage, NamedAttack
from rampart.data import TensorBatches
from rampart.networks import GatedMNISTCNN
from rampart.objectives import MTLIBP, AdversarialTraining, Objective
from tests.conftest import small_network


def batches(n: int = 30, **settings: Any) -> TensorBatches:
    images = torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorBatches(images, torch.arange(n) % 10, **({"batch_size": 10} | settings))


def trainer(folder: Path, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "logger": False,
        "accelerator": "cpu",
        "max_epochs": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(**(defaults | settings))


def linear(**settings: Any) -> Any:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    defaults: dict[str, Any] = {"eps": 0.1, "attack": PGD(steps=2)}
    return AdversarialClassifier(network, **(defaults | settings))


@pytest.mark.parametrize("inference_mode", [True, False])
def test_attacks_have_gradients_in_validate_and_test_in_inference_mode(tmp_path: Path, inference_mode: bool) -> None:
    module = linear(test_attacks=[NamedAttack(PGD(steps=5), 0), NamedAttack(PGD(steps=5), 0.2)])
    with torch.no_grad():
        module.network[1].weight.mul_(5)
    # All clean images are correctly classified, so only the attack fools the network.
    data = batches()
    data.labels = module.network(data.images / 255).argmax(1)
    t = trainer(tmp_path, inference_mode=inference_mode)
    (validated,) = t.validate(module, data, verbose=False)
    (tested,) = t.test(module, data, verbose=False)
    assert validated["val/clean_acc"] == tested["test/clean_acc"] == tested["test/robust_acc/PGD-5 @ 0"] == 1
    assert validated["val/robust_acc"] < 0.2
    assert tested["test/robust_acc/PGD-5 @ 0.2"] < 0.2
    predicted: Any = t.predict(module, data)
    assert (predicted[0]["adv_prediction"] == predicted[0]["clean_prediction"]).float().mean() < 0.9
    # Training works after metrics and modules were used in inference mode.
    t.fit(module, data, data)


def test_accuracies_are_counted_per_image(tmp_path: Path) -> None:
    module, data = linear(eps=0), batches(23)
    (result,) = trainer(tmp_path).validate(module, data, verbose=False)
    accuracy = (module.network(data.images / 255).argmax(1) == data.labels).float().mean().item()
    assert result["val/clean_acc"] == result["val/robust_acc"] == pytest.approx(accuracy, abs=1e-6)


def test_validation_attacks_at_the_target_eps_and_not_at_the_training_eps(tmp_path: Path) -> None:
    results = []
    for eps in (0.0, 1.0):
        module = linear(eps=0.1)
        module.eps = eps
        results.append(trainer(tmp_path).validate(module, batches(), verbose=False)[0]["val/robust_acc"])
    assert results[0] == results[1]


def test_training_attacks_the_gated_network_and_evaluation_its_plain_form(tmp_path: Path) -> None:
    module = AdversarialClassifier(GatedMNISTCNN(), eps=0.1, attack=PGD(steps=1), val_attack=PGD(steps=1))
    gated = []
    module.network.get_submodule("conv1").register_forward_pre_hook(lambda *_: gated.append(True))
    t = trainer(tmp_path)
    t.fit(module, batches())
    assert len(gated) == 3 * 2  # three batches, each with one attack step and one training pass
    t.validate(module, batches(), verbose=False)
    t.test(module, batches(), verbose=False)
    t.predict(module, batches())
    assert len(gated) == 6


def test_incorrectly_classified_clean_images_are_not_robust_and_not_attacked(tmp_path: Path) -> None:
    module = linear(eps=0.3, val_attack=PGD(steps=3), test_attacks=[NamedAttack(PGD(steps=3), 0.3)])
    data = batches(30)
    predictions = module.network(data.images / 255).argmax(1)
    data.labels = predictions.clone()
    data.labels[:13] = (predictions[:13] + 1) % 10  # the first batch all incorrect, the second with three incorrect
    seen = []
    module.network.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0])) if inputs[0].requires_grad else None
    )
    t = trainer(tmp_path)
    (validated,) = t.validate(module, data, verbose=False)
    (tested,) = t.test(module, data, verbose=False)
    assert seen == [7, 7, 7, 10, 10, 10] * 2
    assert validated["val/robust_acc"] <= validated["val/clean_acc"] == pytest.approx(17 / 30)
    assert tested["test/robust_acc/PGD-3 @ 0.3"] <= tested["test/clean_acc"] == pytest.approx(17 / 30)


def test_logged_values_are_tensors_that_need_no_copy_to_the_device(tmp_path: Path, monkeypatch: Any) -> None:
    logged = {}
    monkeypatch.setattr(AdversarialClassifier, "log", lambda _, name, value, **__: logged.update({name: value}))
    trainer(tmp_path).fit(linear(), batches())
    assert {"train/eps", "train/lr", "train/adv_loss"} <= set(logged)
    assert all(isinstance(value, (Tensor, nn.Module)) for value in logged.values())


@pytest.mark.parametrize("objective", [AdversarialTraining(), MTLIBP(weight=0.5)])
def test_the_adversarial_loss_is_logged_under_the_same_name_for_every_objective(
    tmp_path: Path, monkeypatch: Any, objective: Objective
) -> None:
    logged = {}
    monkeypatch.setattr(AdversarialClassifier, "log", lambda _, name, value, **__: logged.update({name: value}))
    module = linear(eps=0.2, attack=PGD(steps=3, start=AtImage()), objective=objective)
    data = batches(10)
    images, labels, _ = next(iter(data))
    expected = F.cross_entropy(module(module.attack(module.network, images, labels, eps=0.2)), labels).detach()
    trainer(tmp_path).fit(module, data)
    torch.testing.assert_close(logged["train/adv_loss"], expected)
    mixed = isinstance(objective, MTLIBP)
    assert (logged["train/loss"] > expected) == mixed
    assert ("train/bound_loss" in logged) == mixed


def test_training_uses_the_adversarial_images(tmp_path: Path) -> None:
    """One SGD step of the module equals one computed by hand."""
    module = linear(eps=0.2, attack=PGD(steps=3, start=AtImage()), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    weight = module.network[1].weight.detach().clone()
    data = batches(10)
    images, labels, _ = next(iter(data))
    adv = module.attack(module.network, images, labels, eps=0.2)
    (grad,) = torch.autograd.grad(F.cross_entropy(module.network(adv), labels), module.network[1].weight)
    trainer(tmp_path).fit(module, data)
    torch.testing.assert_close(module.network[1].weight, weight - 0.5 * grad)


def test_equal_seeds_give_equal_weights_and_different_seeds_different_ones(tmp_path: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        module = linear()
        torch.manual_seed(seed)
        trainer(tmp_path).fit(module, batches())
        results.append(module.network[1].weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_random_starts_of_evaluations_differ_between_batches_and_stages() -> None:
    module = linear()
    before = torch.get_rng_state()
    generators = [module._generator(*state) for state in (("val", 0), ("val", 1), ("test", 0), ("predict", 0))]
    assert len({torch.rand(1, generator=generator).item() for generator in generators}) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_attacks_do_not_update_batchnorm_statistics(tmp_path: Path) -> None:
    network = small_network()
    module = AdversarialClassifier(network, eps=0.1, attack=PGD(steps=4))
    trainer(tmp_path).fit(module, batches(), batches())
    assert network[1].num_batches_tracked == 3
    # A layer that was frozen in eval mode stays frozen.
    assert network[4].num_batches_tracked == 0
    assert not network[4].training


@pytest.mark.parametrize(("interval", "factor"), [("step", 0.4), ("epoch", 0.9)])
def test_the_schedule_advances_by_its_interval(tmp_path: Path, interval: Any, factor: float) -> None:
    module = linear(
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=10),
        lr_interval=interval,
    )
    t = trainer(tmp_path, max_epochs=2 if interval == "step" else 1)
    t.fit(module, batches())
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(factor)


def test_images_without_labels_are_attacked_at_their_clean_prediction(tmp_path: Path) -> None:
    module = linear(test_attacks=[NamedAttack(PGD(steps=10), 0.3)])
    unlabelled: Any = [(torch.rand(8, 1, 28, 28),)]
    predicted: Any = trainer(tmp_path).predict(module, DataLoader(unlabelled, batch_size=None))
    assert set(predicted[0]) == {"clean_prediction", "clean_confidence", "adv_prediction", "adv_confidence"}
    assert (predicted[0]["clean_prediction"] != predicted[0]["adv_prediction"]).all()
    assert ((predicted[0]["adv_confidence"] > 0.1) & (predicted[0]["adv_confidence"] <= 1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: ((x - 0.13) / 0.31, y), r"images must be in \[0, 1\]"),
        (lambda x, y: (x.index_fill(0, torch.tensor(0), torch.nan), y), "without NaN"),
        (lambda x, y: (x, y + 5), r"labels must be in \[0, 10\)"),
    ],
)
@pytest.mark.parametrize("eps", [0, 0.1])
def test_images_and_labels_out_of_range_are_refused_in_every_stage(
    tmp_path: Path, change: Any, message: str, eps: float
) -> None:
    def data() -> DataLoader[tuple[Tensor, Tensor]]:
        changed: Any = [change(images, labels) for images, labels, _ in batches()]
        return DataLoader(changed, batch_size=None)

    module = linear(eps=eps)
    t = trainer(tmp_path)
    for stage in (t.fit, t.validate, t.test):
        with pytest.raises(ValueError, match=message):
            stage(module, data())


def test_a_checkpoint_of_another_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.strategy.connect(linear())
    t.fit(linear(), batches())
    t.save_checkpoint(tmp_path / "a.ckpt")
    other = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 20)), eps=0.1)
    with pytest.raises(ValueError, match=r"1.weight is \(10, 784\) in the file and \(20, 784\)") as caught:
        trainer(tmp_path).test(other, batches(), ckpt_path=tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)


def test_checkpoints_load_without_executing_anything(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.fit(linear(), batches())
    t.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert "network.1.weight" in content["state_dict"]


@pytest.mark.parametrize("eps", [-0.1, 1.5, "x"])
def test_an_eps_out_of_range_is_refused(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.eps must be"):
        linear(eps=eps)


def test_validation_in_another_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val_attack must have the norm of model\.attack, Linf"):
        linear(val_attack=PGD(norm="L2"))


def test_test_attacks_of_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"distinct names, got PGD-2 @ 0\.1, PGD-2 @ 0\.1"):
        linear(test_attacks=[NamedAttack(PGD(steps=2), 0.1), NamedAttack(PGD(steps=2, step_size=0.1), 0.1)])


def test_the_mnist_classifier_has_the_papers_network_eps_and_test_attacks() -> None:
    module = MNISTClassifier()
    assert module.target_eps == 0.4
    assert [named.name for named in module.test_attacks] == ["PGD-200 @ 0.3", "PGD-200 @ 0.4"]
    assert {named.attack.step_size_at(0.4) for named in module.test_attacks} == {0.005}  # type: ignore[attr-defined]
    assert module(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_cifar_classifier_has_a_resnet_and_the_papers_test_attacks() -> None:
    module = CIFARClassifier()
    assert module.target_eps == 8 / 255
    assert [named.name for named in module.test_attacks] == [f"PGD-200 @ {eps}/255" for eps in (8, 16, 32)]
    assert {named.attack.step_size_at(0.1) for named in module.test_attacks} == {2 / 255}  # type: ignore[attr-defined]
    assert module(torch.rand(2, 3, 32, 32)).shape == (2, 10)


class Preset(AdversarialClassifier):
    default_eps = "8/255"

    @classmethod
    def default_network(cls) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_a_preset_has_defaults_and_accepts_every_setting(tmp_path: Path) -> None:
    module = Preset(attack=PGD(steps=1))
    assert module.target_eps == 8 / 255
    assert [named.name for named in module.test_attacks] == ["PGD-20 @ 8/255"]
    t = trainer(tmp_path)
    t.fit(module, batches())
    t.save_checkpoint(tmp_path / "a.ckpt")
    loaded = AdversarialClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert type(loaded) is Preset
    assert loaded.attack == PGD(steps=1)
    assert torch.equal(loaded.network[1].weight, module.network[1].weight)  # type: ignore[index]
    network = nn.Sequential()  # has no layers, and so is false in Python
    given = Preset(network, 0.2, test_attacks=())
    assert (given.network, given.target_eps, given.test_attacks) == (network, 0.2, [])


@pytest.mark.parametrize(("arguments", "missing"), [((nn.Flatten(),), "eps"), ((None, 0.1), "network")])
def test_a_missing_argument_without_a_default_is_refused(arguments: Any, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{missing} must be given, such as .*: AdversarialClassifier has no"):
        AdversarialClassifier(*arguments)
