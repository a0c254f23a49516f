from typing import Any

import pytest

from rampart.files.old_names import update_path, update_settings


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("attacks.PGD", "rampart.attacks.PGD"),
        ("attacks.pgd.PGD", "rampart.attacks.pgd.PGD"),
        ("attacks.losses.margin", "rampart.attacks.losses.margin"),
        ("objectives.trades.TRADES", "rampart.objectives.trades.TRADES"),
        ("networks.ResNet18", "rampart.networks.ResNet18"),
        ("commands.any_network.AnyNetwork", "lightning_modules.AdversarialClassifier"),
        ("attacks.mixed.MixedPGD", "experiments.mixed_attacks.MixedPGD"),
        ("attacks.Mine", "attacks.Mine"),
        ("rampart.attacks.PGD", "rampart.attacks.PGD"),
        ("a name", "a name"),
    ],
)
def test_class_paths_of_earlier_versions_get_todays_names(old: str, new: str) -> None:
    assert update_path(old) == new
    assert update_settings([{"attack": old}, 3]) == [{"attack": new}, 3]


def test_a_users_module_keeps_its_name() -> None:
    assert update_path("networks.ResNet18", lambda module: module == "networks") == "networks.ResNet18"
    assert update_path("attacks.PGD", lambda module: module == "networks") == "rampart.attacks.PGD"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"random_start": False}, {"start": {"class_path": "rampart.attacks.AtImage"}}),
        ({"random_start": True, "start_levels": None}, {"start": {"class_path": "rampart.attacks.Uniform"}}),
        (
            {"random_start": False, "start_levels": [0.4, 0.6]},
            {"start": {"class_path": "rampart.attacks.Level", "init_args": {"low": 0.4, "high": 0.6}}},
        ),
        ({"block_sides": [1]}, {}),
        ({"block_sides": None, "steps": 3}, {"steps": 3}),
    ],
)
@pytest.mark.parametrize("path", ["attacks.PGD", "attacks.pgd.PGD", "rampart.attacks.PGD", "PGD"])
def test_settings_of_pgd_become_its_start(old: Any, new: Any, path: str) -> None:
    updated = update_settings({"attack": {"class_path": path, "init_args": old}})["attack"]
    assert updated == {"class_path": update_path(path), "init_args": new}
    assert update_settings(updated) == updated


def test_pgd_with_blocks_becomes_block_pgd() -> None:
    old = {"class_path": "attacks.PGD", "init_args": {"steps": 3, "block_sides": [3, 1]}}
    new = {"class_path": "experiments.mixed_attacks.BlockPGD", "init_args": old["init_args"]}
    assert update_settings(old) == new
    assert update_settings(new) == new
    mixed = {"class_path": "attacks.MixedPGD", "init_args": {"attacks": [old["init_args"], old]}}
    assert update_settings(mixed)["init_args"] == {"attacks": [new, new]}


def test_attacks_of_a_mixed_attack_are_converted_too() -> None:
    mixed = {
        "class_path": "attacks.MixedPGD",
        "init_args": {"steps": 4, "attacks": [{"random_start": False}, {"block_sides": [3]}]},
    }
    start = {"start": {"class_path": "rampart.attacks.AtImage"}}
    blocks = {"class_path": "experiments.mixed_attacks.BlockPGD", "init_args": {"block_sides": [3]}}
    assert update_settings(mixed)["init_args"] == {"steps": 4, "attacks": [start, blocks]}
    assert update_settings({"class_path": "attacks.PGD", "init_args": {"block_sides": [3]}}) == blocks


def test_mnist_cnn_with_gates_becomes_gated_mnist_cnn() -> None:
    old = {"class_path": "networks.mnist_cnn.MNISTCNN", "init_args": {"num_classes": 3, "init": "gates"}}
    assert update_settings(old) == {"class_path": "rampart.networks.GatedMNISTCNN", "init_args": {"num_classes": 3}}
    old["init_args"] = {"init": "he"}
    assert update_settings(old) == {"class_path": "rampart.networks.mnist_cnn.MNISTCNN", "init_args": {"init": "he"}}


def test_settings_of_other_classes_are_unchanged() -> None:
    theirs = {"class_path": "mine.Attack", "init_args": {"random_start": False, "block_sides": [3]}}
    assert update_settings(theirs) == theirs
