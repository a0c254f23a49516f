"""Configs and checkpoints of earlier versions, as they were saved."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli import main
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, AtImage, Level
from rampart.files.old_names import RETIRED_SETTINGS
from rampart.networks import GatedMNISTCNN
from rampart.objectives import TRADES
from tests.conftest import ROOT
from tests.datamodules.test_datamodules import mnist_root  # noqa: F401 (a fixture)

SAVED = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "pretrained", "experiments")
    for path in (ROOT / folder).rglob("*.yaml")
    if "experiments.mixed_attacks" not in path.read_text()
)
RUN = [name for name in SAVED if name.endswith(("fast/config.yaml", "trades.yaml"))]


@pytest.mark.parametrize("config", RUN)
def test_a_config_saved_by_an_earlier_version_runs(tmp_path: Path, config: str, mnist_root: Path) -> None:  # noqa: F811
    assert len(RUN) == 2
    main([
        "fit", f"--config={ROOT / config}", f"--runs_dir={tmp_path}", "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--data.data_dir={mnist_root}",
        "--data.batch_size=4", "--data.eval_batch_size=4", "--model.test_attacks=[]", "--curve.num_images=2",
    ])  # fmt: skip


def printed(capsys: Any, *arguments: str) -> Any:
    with pytest.raises(SystemExit):
        main(["test", *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]


@pytest.mark.parametrize("config", [name for name in SAVED if name not in RUN])
def test_a_config_saved_by_an_earlier_version_is_read(config: str, capsys: Any) -> None:
    saved = yaml.safe_load((ROOT / config).read_text())["model"]["init_args"]
    model = printed(capsys, f"--config={ROOT / config}")
    assert model["attack"]["class_path"] == "rampart.attacks.PGD"
    assert model["attack"]["init_args"]["steps"] == saved["attack"]["init_args"]["steps"]


def test_configs_of_several_versions_combine(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "old.yaml").write_text(
        "model:\n  init_args:\n    attack: &it\n      class_path: attacks.PGD\n"
        "      init_args: {steps: 3, start_levels: [0.4, 0.6]}\n    val_attack: *it\n"
    )
    (tmp_path / "new.yaml").write_text("model: {init_args: {attack: {init_args: {steps: 7}}}}\n")
    configs = [f"--config={ROOT / 'configs/quickstart.yaml'}", f"--config={tmp_path / 'old.yaml'}"]
    model = printed(capsys, *configs, f"--config={tmp_path / 'new.yaml'}")
    level = {"class_path": "rampart.attacks.Level", "init_args": {"low": 0.4, "high": 0.6}}
    for name, steps in (("attack", 7), ("val_attack", 3)):
        settings = model[name]["init_args"]
        assert (settings["steps"], settings["start"]) == (steps, level)
    model = printed(capsys, *configs, "--model.attack=attacks.APGD", "--model.val_attack", "attacks.PGD")
    assert model["attack"]["class_path"] == "rampart.attacks.APGD"
    assert model["val_attack"]["init_args"]["steps"] == 3


def test_a_mixed_attack_of_an_earlier_version_is_the_experiments(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "old.yaml").write_text(
        "model:\n  init_args:\n    attack:\n      class_path: attacks.MixedPGD\n"
        "      init_args: {steps: 4, attacks: [{relative_step_size: 1.0}, {step_size: 0.1, block_sides: [7, 1]}]}\n"
    )
    model = printed(capsys, f"--config={ROOT / 'configs/quickstart.yaml'}", f"--config={tmp_path / 'old.yaml'}")
    assert model["attack"]["class_path"] == "experiments.mixed_attacks.MixedPGD"
    plain, blocks = model["attack"]["init_args"]["attacks"]
    assert plain["init_args"]["relative_step_size"] == 1.0
    assert blocks["class_path"] == "experiments.mixed_attacks.BlockPGD"
    assert blocks["init_args"]["block_sides"] == [7, 1]


def test_a_folder_of_the_users_takes_precedence(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "networks"]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks/resnet.py").write_text("from rampart.networks import MNISTCNN\nclass ResNet18(MNISTCNN): ...")
    monkeypatch.syspath_prepend(tmp_path)
    quickstart = f"--config={ROOT / 'configs/quickstart.yaml'}"
    model = printed(capsys, quickstart, "--model.network=networks.resnet.ResNet18")
    assert model["network"]["class_path"] == "networks.resnet.ResNet18"
    model = printed(capsys, quickstart, "--model.network=networks.ResNet18")
    assert model["network"]["class_path"] == "rampart.networks.ResNet18"


@pytest.mark.parametrize(("setting", "today"), RETIRED_SETTINGS.items())
def test_a_retired_setting_typed_without_its_class_is_explained(setting: str, today: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--model.attack.{setting}=[1]"])
    assert capsys.readouterr().err == f"error: --model.attack: {setting} of PGD is now written {today}\n"


def test_a_checkpoint_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    network = GatedMNISTCNN()
    pgd = {"steps": 3, "block_sides": [1], "random_start": True}
    settings = {
        "class_path": "lightning_modules.mnist_classifier.MNISTClassifier",
        "network": {"class_path": "networks.mnist_cnn.MNISTCNN", "init_args": {"num_classes": 10, "init": "gates"}},
        "eps": 0.3,
        "attack": {"class_path": "attacks.pgd.PGD", "init_args": pgd | {"start_levels": [0.4, 0.6]}},
        "val_attack": {"class_path": "attacks.pgd.PGD", "init_args": pgd | {"random_start": False}},
        "objective": {"class_path": "objectives.trades.TRADES", "init_args": {"beta": 2.0}},
    }
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "pytorch-lightning_version": "2.6.1"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    loaded: Any = AdversarialClassifier.load_from_checkpoint(tmp_path / "old.ckpt")
    assert isinstance(loaded.network, GatedMNISTCNN)
    assert loaded.attack == PGD(steps=3, start=Level(0.4, 0.6))
    assert loaded.val_attack == PGD(steps=3, start=AtImage())
    assert loaded.objective == TRADES(beta=2.0)
