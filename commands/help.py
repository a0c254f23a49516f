"""Help texts: usage examples first, and Rampart's options before Lightning's hundreds."""

import re
import shutil
import textwrap
from argparse import Action, HelpFormatter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser

from rampart.files import provenance

USE = """\
Rampart trains image classifiers that stay robust under large perturbations.

  {program} fit --config configs/quickstart.yaml
      train and test: minutes on a CPU, no download
  {program} configs
      list all experiments, each with its cost
  {program} fit --config FILE --ckpt_path auto
      resume the newest run of a config, or start a new one
  {program} test --config RUN/config.yaml --ckpt_path WEIGHTS
      print clean accuracy, and robust accuracy under each test attack
  {program} evaluate --model.network my_net.Net --data my_data.Data
      run AutoAttack on a custom network, with --eps 8/255 --ckpt_path FILE

Any option overrides the config: --trainer.max_epochs 10, --model.eps 8/255.
A run's files are in RUNS_DIR/NAME/COMMAND-N.

  COMMAND --help             options of a command
  COMMAND --print_config     all settings and their values
  COMMAND --model.attack.help rampart.attacks.PGD
                             settings of one class
  --version                  versions of Rampart and its dependencies"""

COMMANDS = {
    "fit": "Train a network under attack, then test its best checkpoint.",
    "validate": "Measure clean and robust accuracy on the validation images.",
    "test": "Measure clean accuracy, and robust accuracy under each test attack, on the test images.",
    "predict": "Write the classes of clean and adversarial test images to a CSV file.",
    "evaluate": "Attack each test image with several attacks and report the images that no attack fools.",
    "export": "Write a trained network as a plain state_dict, as safetensors and as ONNX.",
}

# Help texts in place of Lightning's.
OPTIONS = {
    "--ckpt_path": (
        "Lightning checkpoint or plain weights (.pth, .safetensors, ...); fit resumes a run from its checkpoint. With "
        "auto, fit returns to the folder of the newest run with the same name and settings, and resumes it."
    ),
    "--weights_only": "Not used: only tensors and plain values are ever read from a file.",
    "--seed_everything": "Seed of all random numbers; with false, fit chooses a seed.",
    "--checkpoint.dirpath": "Folder of the checkpoints; `checkpoints` in the run's folder if null.",
    "--checkpoint.filename": "File name without suffix; names of metrics in braces are replaced by their values.",
    "--checkpoint.monitor": "Logged metric by which the best checkpoint is chosen, such as val/robust_acc; with auto, "
    "val/certified_acc if the objective trains for it, else val/robust_acc; if null, the last one is used.",
    "--checkpoint.save_last": "Also save the latest state as `last`; with `link`, as a link to that step's checkpoint.",
    "--checkpoint.save_top_k": "Number of best checkpoints to keep; 0 keeps none, -1 keeps all.",
    "--checkpoint.mode": "`max` if larger values of the monitored metric are better, `min` if smaller ones are.",
}

# Order of the groups of options; each is given by one of its options.
ORDER = (
    "--name",
    "--ckpt_path",
    "--model",
    "--data",
    "--ramp",
    "--guard",
    "--images",
    "--curve",
    "--checkpoint",
    "--execution",
    "--trainer",
)

LONGEST_LIST = 12


class RampartHelpFormatter(DefaultHelpFormatter):
    """Help formatter that shortens lists of known subclasses and puts torch's classes last."""

    def _expand_help(self, action: Action) -> str:
        text = str(super()._expand_help(action))
        return re.sub(r"known subclasses: ([^)]*)", lambda found: f"known subclasses: {_shorten(found[1])}", text)


class RampartParser(LightningArgumentParser):
    """Lightning's parser whose help has an introduction and Rampart's groups of options first."""

    introduction = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": RampartHelpFormatter} | kwargs)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the introduction and the help, with titles of groups wrapped to the terminal's width."""
        text = super().format_help() if formatter is None else super().format_help(formatter)
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width) if line[:1].isalpha() else line for line in text.splitlines()]
        return "\n".join([self.introduction, "", *lines, ""]).lstrip()

    def order_groups(self) -> None:
        """Move Rampart's options before Lightning's, and give groups a short title."""

        def place(group: Any) -> int:
            names = {name for action in group._group_actions for name in action.option_strings}
            return next((at for at, name in enumerate(ORDER) if name in names), len(ORDER))

        groups: Any = self._action_groups
        groups.sort(key=place)
        for group in groups:
            if place(group) == ORDER.index("--data"):
                group.title = "Data module with the images"
            if place(group) == ORDER.index("--ckpt_path"):
                group.title = "Options of this command"


def format_versions() -> str:
    """Return the versions of Rampart, its commit, and the packages that results depend on."""
    origin = provenance()
    try:
        own = version("rampart")
    except PackageNotFoundError:
        own = "not installed"
    packages = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    return f"rampart {own} (commit {origin['commit'] or 'unknown'}), {packages}"


def _shorten(names: str) -> str:
    known = names.split(", ")
    if len(known) <= LONGEST_LIST:
        return names
    known.sort(key=lambda name: name.startswith("torch"))
    return f"{', '.join(known[:LONGEST_LIST])} and {len(known) - LONGEST_LIST} more; any other by its import path"
