"""Config files, checked before the parser reads them, so that an error names the file and the line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

LARGEST = 1_000_000


def check_configs(arguments: Sequence[str]) -> None:
    """Check every file that ``--config`` names; one that is not there is left to the parser.

    Raises:
        ValueError: If a file is not a YAML mapping of text, or its aliases unfold to more than a million values.
    """
    for path in map(Path, _paths(arguments)):
        if path.is_file():
            _check(path)


def _paths(arguments: Sequence[str]) -> Iterator[str]:
    for word, after in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, _, value = word.partition("=")
        if flag in ("--config", "-c"):
            yield value or after


def _check(path: Path) -> None:
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
    if _size(root, {}) > LARGEST:
        raise ValueError(f"config {path} unfolds to more than {LARGEST:,} values through its aliases: refused")
    try:
        yaml.SafeLoader("").construct_document(root)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(f"config {path} holds what is no plain value: {error.problem}") from None


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values that a node unfolds to; a node that holds itself has no end."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_size(child, known) for child in flat)
    return known[id(node)]
