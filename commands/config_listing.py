"""List the experiments that are ready to run, from the headers of their YAML files.

The first line of a header is a summary, the line ``# Cost: ...`` states gradient evaluations and time. This module
imports no large package, so that the list appears at once.
"""

import difflib
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Experiment:
    """A config file that is ready to run, or an overlay that changes another one.

    Attributes:
        path: Path relative to the repository's root.
        summary: Summary in one sentence.
        cost: Gradient evaluations and time.
        data: Name of the data set; empty for an overlay.
    """

    path: Path
    summary: str
    cost: str
    data: str

    @property
    def is_overlay(self) -> bool:
        """True if the file can only be combined with another config."""
        return self.path.parent.name == "overlays"


def list_configs(arguments: Sequence[str] = ()) -> str:
    """Return the text of ``python cli.py configs``.

    Args:
        arguments: Words after the command; none are allowed.

    Raises:
        ArgumentError: If there are arguments.
    """
    if arguments:
        raise ArgumentError(None, f"configs takes no arguments, got {' '.join(arguments)}")
    lines = ["Experiments: python cli.py fit --config FILE", ""]
    found = find_experiments()
    for experiment in sorted(found, key=lambda found: found.is_overlay):
        if experiment.is_overlay and not any("overlay" in line for line in lines):
            lines += ["", "Overlays, given after an experiment: --config FILE --config OVERLAY", ""]
        data = f"Data: {experiment.data}. " if experiment.data else ""
        lines += [f"{_as_typed(experiment.path)}: {experiment.summary}", f"    {data}Cost: {experiment.cost}"]
    return "\n".join(lines)


def find_experiments() -> list[Experiment]:
    """Return all configs that have a header, sorted by path, with ``configs/`` before ``experiments/``."""
    files = [path for folder in ("configs", "experiments") for path in sorted((ROOT / folder).rglob("*.yaml"))]
    files.sort(key=lambda path: (path.relative_to(ROOT).parts[0], len(path.relative_to(ROOT).parts)))
    return [found for path in files if (found := read_header(path))]


def read_header(path: Path) -> Experiment | None:
    """Read a config's header; return None for a file without one, such as the saved config of a run."""
    text = path.read_text(encoding="utf-8")
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    costs = [line.removeprefix("Cost:").strip() for line in header if line.startswith("Cost:")]
    if not costs:
        return None
    data = (yaml.safe_load(text).get("data") or {}).get("class_path", "")
    return Experiment(path.relative_to(ROOT), header[0], costs[0], data.rpartition(".")[2].removesuffix("DataModule"))


def suggest_config(given: str) -> str:
    """Return the config whose name is most similar to a wrong name.

    Args:
        given: A path that does not exist, or a bare name such as ``fast`` or ``mnist/fast``.

    Returns:
        A path that is valid in the current folder; empty if no name is similar.
    """
    siblings = sorted(Path(given).parent.glob("*.y*ml")) if Path(given).parent.is_dir() else []
    known = {path.name.rpartition(".")[0]: str(path) for path in siblings}
    for experiment in find_experiments():
        path = experiment.path.with_suffix("")
        for name in (path.name, path.as_posix().removeprefix("configs/"), path.as_posix()):
            known.setdefault(name, _as_typed(experiment.path))
    wanted = given.removesuffix(".yaml").removesuffix(".yml").removeprefix("./")
    for name in (wanted, Path(wanted).name):
        if found := difflib.get_close_matches(name, known, 1):
            return known[found[0]]
    return ""


def _as_typed(path: Path) -> str:
    return str(path if Path.cwd() == ROOT else ROOT / path)
