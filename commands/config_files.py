"""Config files, checked before the parser reads them, so that an error names the file and the line."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from commands.config_listing import suggest_config
from commands.messages import command_line
from rampart.files.old_names import update_path, update_settings

LARGEST = 1_000_000

_load_yaml = get_loader("yaml")


def read_old_configs() -> None:
    """Let the parser convert the class paths and settings of earlier versions in every YAML text that it reads."""

    def load(text: str) -> Any:
        value = _load_yaml(text)
        return update_settings(value, is_users_module) if isinstance(value, (dict, list)) else value

    set_loader("yaml", load, exceptions=(yaml.YAMLError,))


def update_words(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line with class paths of earlier versions replaced by the current ones."""
    new = []
    for word in arguments:
        flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        new.append(flag + equals + update_path(value, is_users_module))
    return new


def is_users_module(name: str) -> bool:
    """Return True if a module exists outside Rampart, so that an old class path names the user's code.

    The module is not imported. Folders that hold only compiled files of an earlier version do not count.
    """
    package, _, module = name.partition(".")
    found = find_spec(package)
    if found is None or found.origin is not None:
        return found is not None
    return any((Path(folder) / f"{module}.py").is_file() for folder in found.submodule_search_locations or ())


def check_configs(arguments: Sequence[str]) -> None:
    """Check every file that ``--config`` names.

    Raises:
        ValueError: If a file does not exist, is not a YAML mapping of text, or its aliases expand to more than a
            million values.
    """
    for given in _find_paths(arguments):
        path = Path(given)
        if path.is_file():
            _check_file(path)
        elif given and not path.exists() and not set(given) & set("{:\n"):  # else options in place of a file
            nearest = suggest_config(given)
            hint = f"did you mean {nearest}? " if nearest else ""
            raise ValueError(f"there is no {given}; {hint}`{command_line('configs')}` lists all configs")


def _find_paths(arguments: Sequence[str]) -> Iterator[str]:
    for word, after in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, _, value = word.partition("=")
        if flag in ("--config", "-c"):
            yield value or after


def _check_file(path: Path) -> None:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ValueError(
            f"config {path} is not a text file: give a YAML file such as configs/quickstart.yaml"
        ) from None
    except OSError as error:
        raise ValueError(f"config {path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"config {path} is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"config {path} is not valid YAML: {place}{error.problem or error.context}") from None
    if not isinstance(root, yaml.MappingNode):
        got = {yaml.SequenceNode: "a list", type(None): "nothing"}.get(type(root), "a single value")
        raise ValueError(f"config {path} must hold options, such as `trainer: {{max_epochs: 3}}`, got {got}")
    if _count_values(root, {}) > LARGEST:
        raise ValueError(f"config {path} expands to more than {LARGEST:,} values through its aliases: refused")
    try:
        yaml.SafeLoader("").construct_document(root)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(f"config {path} has a value that is not plain: {error.problem}") from None


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values that a node expands to; infinite for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_count_values(child, known) for child in flat)
    return known[id(node)]
