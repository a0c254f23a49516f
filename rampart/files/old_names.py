"""Convert class paths and settings of earlier versions of Rampart to those of today."""

from collections.abc import Callable, Mapping
from typing import Any

# Packages of earlier versions, their modules, and the names in these that a config or a checkpoint can hold.
OLD_PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "attacks": {
        "apgd": ("APGD",),
        "attack": ("NamedAttack",),
        "fab": ("FAB",),
        "pgd": ("PGD",),
        "square": ("Square",),
        "losses": ("cross_entropy", "dlr", "margin"),
    },
    "networks": {"mnist_cnn": ("MNISTCNN",), "normalize": ("Normalize",), "resnet": ("ResNet18",)},
    "objectives": {"adversarial_training": ("AdversarialTraining",), "mtl_ibp": ("MTLIBP",), "trades": ("TRADES",)},
}
MIXED_PGD = "experiments.mixed_attacks.MixedPGD"
BLOCK_PGD = "experiments.mixed_attacks.BlockPGD"

# Keys: old class paths. Configs name classes by their package, checkpoints by their module.
NEW_PATHS = {
    "attacks.MixedPGD": MIXED_PGD,
    "attacks.mixed.MixedPGD": MIXED_PGD,
    "commands.any_network.AnyNetwork": "lightning_modules.AdversarialClassifier",
    "commands.any_network.AnyLightningModule": "lightning_modules.AdversarialClassifier",
}
for _package, _modules in OLD_PACKAGES.items():
    for _module, _names in _modules.items():
        for _name in _names:
            NEW_PATHS[f"{_package}.{_module}.{_name}"] = f"rampart.{_package}.{_module}.{_name}"
            if _module != "losses":
                NEW_PATHS[f"{_package}.{_name}"] = f"rampart.{_package}.{_name}"

# Settings that PGD had, and how they are written today.
RETIRED_SETTINGS = {
    "random_start": "start: rampart.attacks.Uniform or start: rampart.attacks.AtImage",
    "start_levels": "start: {class_path: rampart.attacks.Level, init_args: {low: LOW, high: HIGH}}",
    "block_sides": "class_path: experiments.mixed_attacks.BlockPGD",
}

PGD_PATHS = ("PGD", "rampart.attacks.PGD", "rampart.attacks.pgd.PGD")
MNIST_CNN_PATHS = ("MNISTCNN", "rampart.networks.MNISTCNN", "rampart.networks.mnist_cnn.MNISTCNN")


def never_foreign(_name: str) -> bool:
    """Return False: treat no module as the user's code."""
    return False


def update_path(path: str, is_foreign: Callable[[str], bool] = never_foreign) -> str:
    """Return the class path of today for one of an earlier version; other strings are returned unchanged.

    Args:
        path: A class path, such as ``attacks.PGD``, or any other string.
        is_foreign: Returns True if a module name, such as ``attacks``, belongs to the user's code. Then the path is
            not changed.
    """
    if path not in NEW_PATHS:
        return path
    module = path.rpartition(".")[0]
    return path if module.split(".")[0] in OLD_PACKAGES and is_foreign(module) else NEW_PATHS[path]


def update_settings(value: Any, is_foreign: Callable[[str], bool] = never_foreign) -> Any:
    """Return the settings of a config or a checkpoint with the class paths and arguments of today.

    Args:
        value: Nested mappings and sequences of plain values; classes are ``{"class_path": ..., "init_args": ...}``, or
            a class path alone. It is not changed. The result may share parts with it.
        is_foreign: See :func:`update_path`.
    """
    if isinstance(value, str):
        return update_path(value, is_foreign)
    if isinstance(value, (list, tuple)):
        return type(value)(update_settings(item, is_foreign) for item in value)
    if not isinstance(value, Mapping):
        return value
    new = {key: update_settings(item, is_foreign) for key, item in value.items()}
    path, settings = new.get("class_path"), new.get("init_args")
    if not isinstance(settings, dict):
        return new
    if path in PGD_PATHS:
        settings = _update_pgd(settings)
        return new | {"class_path": BLOCK_PGD if "block_sides" in settings else path, "init_args": settings}
    if path == MIXED_PGD and isinstance(settings.get("attacks"), (list, tuple)):
        attacks = [_update_mixed(item) if isinstance(item, dict) else item for item in settings["attacks"]]
        return new | {"init_args": settings | {"attacks": attacks}}
    if path in MNIST_CNN_PATHS and settings.get("init") == "gates":
        rest = {name: item for name, item in settings.items() if name != "init"}
        return new | {"class_path": "rampart.networks.GatedMNISTCNN", "init_args": rest}
    return new


def _update_mixed(attack: dict[str, Any]) -> dict[str, Any]:
    """Return an attack of a mixed attack, where settings without a class are those of PGD."""
    settings = attack if "class_path" in attack else _update_pgd(attack)
    return {"class_path": BLOCK_PGD, "init_args": settings} if "block_sides" in settings else settings


def _update_pgd(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``random_start`` and ``start_levels`` by ``start``, and leave out ``block_sides`` at its default."""
    new = {
        name: value for name, value in settings.items() if name not in ("random_start", "start_levels", "block_sides")
    }
    if (sides := settings.get("block_sides")) not in (None, [1], (1,)):
        new["block_sides"] = sides
    if "random_start" not in settings and "start_levels" not in settings:
        return new
    if (levels := settings.get("start_levels")) is not None:
        if not isinstance(levels, (list, tuple)) or len(levels) != 2:
            return dict(settings)  # The parser refuses them.
        low, high = levels
        start: dict[str, Any] = {"class_path": "rampart.attacks.Level", "init_args": {"low": low, "high": high}}
    else:
        start = {"class_path": f"rampart.attacks.{'Uniform' if settings.get('random_start', True) else 'AtImage'}"}
    return {"start": start} | new
