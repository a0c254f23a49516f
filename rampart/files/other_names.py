"""Translate other libraries' names of a network's tensors."""

from collections.abc import Mapping

from torch import nn

from rampart.files.weight_names import FileTensor, NetworkNames, find_matches


def translate_names(
    network: nn.Module, expected: NetworkNames, tensors: dict[str, FileTensor]
) -> tuple[dict[str, FileTensor], str]:
    """Give a file's tensors the network's names where another library's names differ by a rule.

    The rule is an attribute ``other_names`` of the network or of a part of it. It maps parts of dotted names in files
    to the network's names of these parts, or to None for tensors without effect, which are left out.

    Args:
        network: The network to load.
        expected: Its names.
        tensors: The file's tensors, by name.

    Returns:
        The tensors by their translated names if these fit the network better, otherwise as given; and a remark for the
        user, empty if nothing was translated.
    """
    rules = {part: own for module in network.modules() for part, own in getattr(module, "other_names", {}).items()}
    names = {name: [rules.get(part, part) for part in name.split(".")] for name in tensors}
    kept = {name: ".".join(parts) for name, parts in names.items() if None not in parts}
    translated = {there: tensors[name] for name, there in kept.items()}
    if len(translated) < len(kept) or _count_problems(expected, translated) >= _count_problems(expected, tensors):
        return tensors, ""
    found = {part for name in tensors for part in name.split(".")}
    used = [f"{part} is {own or 'not used'}" for part, own in rules.items() if part in found]
    return translated, f"; names in the file: {', '.join(used)}"


def _count_problems(expected: NetworkNames, tensors: Mapping[str, FileTensor]) -> int:
    matches = find_matches(expected, tensors)
    return min(len(match.missing) + len(match.wrong) + len(match.extra) for match in matches)
