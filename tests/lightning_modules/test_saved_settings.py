import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from cli import main
from lightning_modules import AdversarialClassifier, MNISTClassifier
from lightning_modules.saved_settings import NotPlainError, build, describe
from rampart.attacks import APGD, FAB, PGD, Level, NamedAttack, Square
from rampart.attacks.losses import margin
from rampart.data import TensorBatches
from rampart.networks import CNN5, CNN7, MNISTCNN, GatedMNISTCNN, Normalize, PreActResNet18, ResNet18, WideResNet
from rampart.objectives import CROWNIBP, IBP, MTLIBP, SABR, TRADES, AdversarialTraining
from tests.conftest import ROOT, small_network


class Plain(nn.Sequential):
    """A custom network without arguments."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 10))


class Wide(nn.Sequential):
    """A custom network with one argument."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 10))


class Named(MNISTClassifier):
    """A custom subclass with an additional argument."""

    def __init__(self, title: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.title = title


def save(module: Any, folder: Path) -> Path:
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, TensorBatches(images, torch.arange(4), batch_size=4))
    trainer.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


def change(path: Path, **settings: Any) -> Path:
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= settings
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "value",
    [
        PGD(steps=3, step_size="2/255", loss="margin", start=Level(0.4, 0.6)),
        PGD(loss=margin, norm="L2"),
        APGD(targets=3),
        FAB(),
        Square(queries=7),
        (NamedAttack(PGD(steps=3), "8/255"), NamedAttack(Square(), 0.3, name="S")),
        TRADES(),
        MTLIBP(weight=0.3, adversarial=AdversarialTraining(leftover_gradient=True)),
        IBP(target_eps="8/255", clean_weight_start=1, clean_weight_end=0.5, l1=1e-6),
        CROWNIBP(target_eps=0.4, crown_weight_end=0.5),
        SABR(target_eps=0.4, box_ratio=0.1),
        SGD,
    ],
)
def test_settings_are_rebuilt_from_plain_values(value: Any) -> None:
    assert build(describe(value)) == value


@pytest.mark.parametrize(
    "module",
    [
        GatedMNISTCNN(num_classes=3),
        ResNet18(mean=(0.5,), std=(0.25,), width=8),
        PreActResNet18(width=8, raw_shortcut=True, last_bn=False),
        WideResNet(depth=10, widen_factor=1),
        CNN7(image_shape=(3, 32, 32), width=2, hidden=3, mean=(0.5,) * 3, std=(0.2,) * 3),
        CNN5(width=2, levels=((0.4, 0.6), (0.1, 0.9)), init="default"),
        nn.Sequential(Normalize([0.1, 0.2], [0.3, 0.4]), nn.Conv2d(2, 3, 5, stride=2, bias=False), nn.Flatten()),
        nn.Sequential(
            nn.BatchNorm2d(3, eps=0.1), nn.Dropout(0.3), nn.MaxPool2d(2), nn.ReLU(), nn.Sequential(nn.GELU())
        ),
        small_network(),
        Plain(),
        nn.CrossEntropyLoss(weight=torch.arange(4.0), label_smoothing=0.2),
    ],
)
def test_networks_and_losses_are_rebuilt_from_plain_values(module: Any) -> None:
    made = build(describe(module))
    assert repr(made) == repr(module)
    made.load_state_dict(module.state_dict())
    if hasattr(module, "label_smoothing"):
        assert made.label_smoothing == 0.2
        assert torch.equal(made.weight, module.weight)


@pytest.mark.parametrize("value", [lambda: 0, Wide(3), object(), partial(lambda: 0)])
def test_objects_without_a_description_in_plain_values_are_refused(value: Any) -> None:
    with pytest.raises(NotPlainError):
        describe(value)


def test_describing_a_module_does_not_change_the_random_state() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = torch.get_rng_state()
    describe(network)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loader", [AdversarialClassifier, MNISTClassifier])
def test_a_module_trained_in_python_is_loaded_with_its_settings_and_weights(tmp_path: Path, loader: Any) -> None:
    trained = MNISTClassifier(
        network=MNISTCNN(init="he"),
        eps="8/255",
        attack=PGD(steps=1, relative_step_size=0.5),
        val_attack=PGD(steps=2),
        test_attacks=(NamedAttack(PGD(steps=4), 0.2, name="mine"),),
        objective=AdversarialTraining(loss=nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))),
        optimizer=partial(SGD, lr=0.5),
        lr_scheduler=partial(OneCycleLR, max_lr=0.3, total_steps=1),
    )
    loaded: Any = loader.load_from_checkpoint(save(trained, tmp_path))
    assert type(loaded).__name__ == "MNISTClassifier"
    for name in ("eps", "target_eps", "attack", "val_attack", "test_attacks", "_optimizer"):
        assert str(getattr(loaded, name)) == str(getattr(trained, name)), name
    assert torch.equal(loaded.objective.loss.weight, torch.arange(1.0, 11.0))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_ramp_does_not_change_the_saved_settings(tmp_path: Path) -> None:
    trained = AdversarialClassifier(Plain(), eps=0.2, attack=PGD(steps=1))
    trained.eps, trained.attack = 0.05, PGD(steps=2)
    loaded = AdversarialClassifier.load_from_checkpoint(save(trained, tmp_path))
    assert (loaded.eps, loaded.attack) == (0.2, PGD(steps=1))


def test_arguments_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    path = save(AdversarialClassifier(Wide(5), eps=0.2, attack=PGD(steps=1)), tmp_path)
    with pytest.raises(
        ValueError, match=r"does not describe the arguments of the network, .*Wide: pass it, .*network=\.\.\."
    ) as caught:
        AdversarialClassifier.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)
    loaded = AdversarialClassifier.load_from_checkpoint(path, network=Wide(5), attack=PGD(steps=9), weights_only=True)
    assert (loaded.eps, loaded.attack) == (0.2, PGD(steps=9))


def test_an_additional_argument_of_a_subclass_must_be_given(tmp_path: Path) -> None:
    path = save(Named("a", attack=PGD(steps=1)), tmp_path)
    with pytest.raises(ValueError, match="missing 1 required positional argument: 'title': pass it"):
        Named.load_from_checkpoint(path)
    assert MNISTClassifier.load_from_checkpoint(path, title="b").title == "b"


@pytest.mark.parametrize("module", [None, "network"])
def test_a_checkpoint_without_settings_is_refused(tmp_path: Path, module: str | None) -> None:
    network = Plain()
    if module:
        torch.save(network.state_dict(), tmp_path / "a.ckpt")
    else:
        content = torch.load(
            save(AdversarialClassifier(network, eps=0.2, attack=PGD(steps=1)), tmp_path), weights_only=True
        )
        del content["hyper_parameters"]
        torch.save(content, tmp_path / "a.ckpt")
        assert AdversarialClassifier.load_from_checkpoint(tmp_path / "a.ckpt", network=Plain(), eps=0.1).eps == 0.1
    with pytest.raises(ValueError, match="has no settings of a module") as caught:
        AdversarialClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": {"class_path": "os.system", "init_args": {"command": "touch TRACE"}}},
        {"network": {"class_path": "subprocess.Popen", "args": ["touch TRACE"]}},
        {"network": {"class_path": "torch.nn.modules.module.torch.hub.load", "args": ["x"]}},
        {"network": {"class_path": "rampart.files.export.importlib", "args": []}},
        {"optimizer": {"factory": "os.system", "init_args": {}}},
        {"objective": {"class_path": "rampart.objectives.TRADES", "init_args": {"beta": {"factory": "builtins.eval"}}}},
        {"network": {"class_path": "evil_module.Net"}},
        {"class_path": "evil_module.Net", "network": {"class_path": "evil_module.Net"}},
        {"network": {"class_path": "rampart.networks.MNISTCNN", "init_args": {"nothing": 1}}},
        {"network": {"class_path": 7}},
    ],
)
def test_a_checkpoint_can_not_run_or_import_code(tmp_path: Path, settings: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('TRACE', 'w')\nclass Net: pass\n")
    monkeypatch.chdir(tmp_path)
    path = change(save(AdversarialClassifier(Plain(), eps=0.2, attack=PGD(steps=1)), tmp_path), **settings)
    with pytest.raises((ValueError, TypeError)) as caught:
        AdversarialClassifier.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "TRACE").exists()
    assert "evil_module" not in sys.modules


def test_a_module_trained_on_the_command_line_is_loaded(tmp_path: Path) -> None:
    main([
        "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--runs_dir={tmp_path}", "--data.batch_size=4",
        "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1",
        "--test_after_fit=false", "--trainer.enable_progress_bar=false", "--images.num_images=0", "--ramp.phases=null",
        "--model.eps=8/255",
        "--model.attack.steps=1", "--model.network=tests.lightning_modules.test_saved_settings.Wide",
        "--model.network.width=6", "--model.objective=AdversarialTraining",
        "--model.objective.loss=torch.nn.CrossEntropyLoss", "--model.objective.loss.weight=[1,1,1,1,1,1,1,1,1,2]",
    ])  # fmt: skip
    path = next(tmp_path.rglob("last.ckpt"))
    loaded: Any = AdversarialClassifier.load_from_checkpoint(path)
    assert type(loaded).__name__ == "MNISTClassifier"
    assert loaded.target_eps == 8 / 255
    assert loaded.attack.steps == 1
    assert loaded.network[1].out_features == 6
    assert loaded.objective.loss.weight.tolist() == [1.0] * 9 + [2.0]
    saved: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(loaded.network[1].weight, saved["network.1.weight"])
