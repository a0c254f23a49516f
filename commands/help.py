"""Help that begins with how the command line is used, and Rampart's own options before Lightning's hundreds."""

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
  {program} fit --config FILE --ckpt_path RUN/checkpoints/last.ckpt
      resume a run that was ended early
  {program} test --config RUN/config.yaml --ckpt_path WEIGHTS
      a table of clean and robust accuracy; evaluate: the worst case per image
  {program} evaluate --model.network my_net.Net --data my_data.Data
      AutoAttack on a custom network, with --eps 8/255 --ckpt_path FILE

Any option overrides the config: --trainer.max_epochs 10, --model.eps 8/255.
A run's files are in RUNS_DIR/NAME/COMMAND-N. --version tells versions,
COMMAND --help lists a command's options, --print_config shows all settings,
--model.attack.help rampart.attacks.PGD those of one class."""

COMMANDS = {
    "fit": "Train a network under attack, then test its best checkpoint.",
    "validate": "Measure clean and robust accuracy on the validation images.",
    "test": "Measure clean accuracy, and robust accuracy under each test attack, on the test images.",
    "predict": "Write the classes of clean and adversarial test images to a CSV file.",
    "evaluate": "Find each test image's worst case over several attacks and report what is robust.",
    "export": "Write a trained network as a plain state_dict, as safetensors and as ONNX.",
}

CKPT_PATH = (
    "A Lightning checkpoint, or plain weights (.pth, .safetensors, ...); fit resumes from a checkpoint of its own."
)

# The order of the help's groups, by an option that is in each.
ORDER = ("--name", "--ckpt_path", "--model", "--data", "--ramp", "--images", "--curve", "--checkpoint", "--trainer")

LONGEST_LIST = 12


class RampartHelpFormatter(DefaultHelpFormatter):
    """Lists of known subclasses hold a few, those of torch last."""

    def _expand_help(self, action: Action) -> str:
        text = str(super()._expand_help(action))
        return re.sub(r"known subclasses: ([^)]*)", lambda found: f"known subclasses: {_shorten(found[1])}", text)


class RampartParser(LightningArgumentParser):
    """Lightning's parser with help for newcomers."""

    introduction = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": RampartHelpFormatter} | kwargs)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Begin with the introduction; fit the groups' titles to the terminal, as the options are."""
        text = super().format_help() if formatter is None else super().format_help(formatter)
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width) if line[:1].isalpha() else line for line in text.splitlines()]
        return "\n".join([self.introduction, "", *lines, ""]).lstrip()

    def order_groups(self) -> None:
        """Put Rampart's own options first."""

        def place(group: Any) -> int:
            names = {name for action in group._group_actions for name in action.option_strings}
            return next((at for at, name in enumerate(ORDER) if name in names), len(ORDER))

        groups: Any = self._action_groups
        groups.sort(key=place)


def version_line() -> str:
    """Return Rampart's version and commit, and the versions of what numbers depend on."""
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
