"""Parser errors as one sentence: the option, the value given, the allowed values and an example."""

import ast
import difflib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rampart.files.old_names import PGD_PATHS, RETIRED_SETTINGS

# Modules whose classes are suggested for a mistyped name.
KNOWN = (
    "lightning_modules", "datamodules", "rampart.attacks", "rampart.objectives", "rampart.networks", "callbacks",
    "torch.optim",
    "torch.optim.lr_scheduler", "pytorch_lightning.callbacks", "pytorch_lightning.loggers",
)  # fmt: skip

TYPES = {
    "int": ("a whole number", "3"),
    "float": ("a number", "0.1"),
    "bool": ("true or false", "true"),
    "str": ("a text", "name"),
    "dict": ("a mapping", "{key: value}"),
    "list": ("a list", "[VALUE]"),
    "tuple": ("a list", "[VALUE]"),
    "collections.abc.Iterable": ("a list", "[VALUE]"),
}

ITEMS = {
    "Phase": "{epochs: 1, end_eps: 0.4}",
    "NamedAttack": "{eps: 0.3, attack: rampart.attacks.PGD}",
    "Attack": "rampart.attacks.PGD",
    "AdaptiveRamp": "{share: 0.2}",
}

HINTS = {
    "LightningDataModule": (
        ": a data module is a class of LightningDataModule whose train_dataloader(), val_dataloader() and "
        "test_dataloader() return DataLoaders of (images in [0, 1], labels); wrap a data set in one"
    ),
    "AdversarialClassifier": ": give a network as model.network",
}


@dataclass
class Problem:
    """Innermost error of jsonargparse's message, which nests the errors of all types that it has tried."""

    keys: list[str] = field(default_factory=list)
    class_path: str = ""
    subtypes: str = ""
    value: str | None = None
    setting: str = ""
    causes: list[str] = field(default_factory=list)

    @property
    def option(self) -> str:
        """Option as written on the command line, such as ``--model.eps``."""
        return "--" + ".".join(self.keys)


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Return one sentence that explains an error of the parser.

    Args:
        message: The parser's message.
        options: All options of the command, such as ``--trainer.max_epochs``.
    """
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        return f"unrecognized arguments: {found[1]}{_suggest_option(found[1].split('=')[0], list(options))}"
    if found := re.match(r"argument (\S+): expected one argument", message):
        return f"{found[1]} needs a value, got none: {found[1]} VALUE"
    if found := re.match(r"the following arguments are required: (.*)", message):
        names = [f"--{name.partition('.')[2] or name}" for name in found[1].split(", ")]
        return (
            f"{' and '.join(names)} must be given: {names[0]} CLASS, or --config FILE (such as configs/quickstart.yaml)"
        )
    if found := re.match(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL):
        commands = [*re.findall(r"[a-z]+", found[2]), "configs"]
        hint = _suggest(found[1], commands) or f"; there are {', '.join(commands)}"
        return f"no command is called {found[1]!r}{hint}"
    if found := re.match(r"Subcommand '(\w+)' does not accept option '(.*)'", message):
        return _explain_unknown_key(found[1], found[2], options)
    if found := re.match(r"Option '.*' is not accepted before subcommand '(\w+)'", message):
        return f"the command comes first: {found[1]} --config FILE"
    if 'expected "subcommand"' in message:
        return "a command is needed: fit, validate, test, predict, evaluate, export or configs; --help explains them"
    problem = _find_innermost(message)
    if problem.keys and problem.causes:
        return _format_problem(problem)
    if "Does not validate against any" not in message:
        return message
    specific = [cause for cause in problem.causes if not cause.startswith("Expected a <class")]
    return " ".join(specific or problem.causes)


def _explain_unknown_key(command: str, key: str, options: Iterable[str]) -> str:
    if key.startswith(f"{command}."):
        return f"a config holds the options themselves, without the command: leave out `{command}:` in the file"
    return f"{key} in the config is not an option of {command}{_suggest(f'--{key}', options) or ': --help lists them'}"


def wrap_single_value(message: str, words: list[str]) -> list[str] | None:
    """Put a single value in brackets where the parser expects a list.

    Args:
        message: The parser's message.
        words: Words of the command line.

    Returns:
        The words with that value in brackets, or None for any other error.
    """
    problem = _find_innermost(message)
    if not problem.causes or not all(re.match(r"Expected a <class '(tuple|list)'>", it) for it in problem.causes):
        return None
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value if equals else "".join(words[at + 1 : at + 2])
        if flag.replace(".init_args", "") == problem.option and not value.startswith("["):
            return [*words[:at], f"{flag}=[{value}]", *words[at + (1 if equals else 2) :]]
    return None


def find_refused_network(message: str) -> str | None:
    """Return the import path that the parser refused as a network; None for any other error."""
    problem = _find_innermost(message)
    found = re.match(r"Import path (\S+ )?does not correspond to a subclass of Module$", " ".join(problem.causes))
    if not found or problem.keys[-1:] != ["network"]:
        return None
    value = problem.value or ""
    in_config = re.search(r"'class_path': '(.*?)'", value)
    return (found[1] or (in_config[1] if in_config else value)).strip("' ")


def move_network_option(message: str, words: list[str]) -> list[str] | None:
    """Correct a command line that passes a network as ``--model``.

    Args:
        message: The parser's message.
        words: Words of the command line.

    Returns:
        The words with ``--model.network`` in place of ``--model``, or None for any other error.
    """
    problem = _find_innermost(message)
    cause = " ".join(problem.causes)
    if problem.option != "--model" or "subclass of AdversarialClassifier" not in cause or problem.value is None:
        return None
    corrected = [re.sub(r"^--model(?==|$)", "--model.network", word) for word in words]
    return corrected if corrected != words else None


def _find_innermost(message: str) -> Problem:
    problem = Problem()
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if found := re.match(r'Parser key "(.*?)": *(.*)$', text):
            causes = [found[2]] if found[2] else []
            names = [name for name in found[1].split(".") if name not in problem.keys[-1:]]
            problem = Problem([*problem.keys, *names], problem.class_path, causes=causes)
        elif found := re.match(r"Problem with given class_path '(.*)':$", text):
            problem.class_path, problem.causes = found[1], []
        elif found := re.match(r"Subtypes: \[(.*)\]$", text):
            problem.subtypes = found[1]
        elif found := re.match(r"Given value: (.*)$", text):
            problem.value = found[1]
            if nested := re.match(r"NestedArg\(key='(.*?)', val=(.*)\)$", found[1]):
                problem.setting, problem.value = nested[1], nested[2]
            break
        elif found := re.match(r"(.*)\. Got value: (.*)$", text):
            problem.causes, problem.value = [found[1]], found[2]
            break
        elif text and not re.match(
            r"Expected a path|Expected (a )?<class 'NoneType'>|Does not|Errors:|Given value", text
        ):
            problem.causes.append(text)
    return problem


def _format_problem(problem: Problem) -> str:
    short = problem.class_path.rpartition(".")[2]
    value = (problem.value or "").strip("'")
    found = re.fullmatch(r"<class 'bool'>, <class '.*\.(\w+)'>", problem.subtypes)
    if found and not value.startswith("{"):
        return f"{problem.option} must be true, false, or settings such as '{ITEMS[found[1]]}', got {value!r}"
    for cause in problem.causes:
        if found := re.match(r"Option '(.*)' is not accepted", cause):
            allowed = _list_parameters(problem.class_path)
            takes = f"; it takes {', '.join(allowed)}" if allowed else ", which has no settings"
            if found[1] in RETIRED_SETTINGS and problem.class_path in PGD_PATHS:
                return f"{problem.option}: {found[1]} of PGD is now written {RETIRED_SETTINGS[found[1]]}"
            hint = _suggest(found[1], allowed, f"{problem.option}.") or takes
            return f"{problem.option}: '{found[1]}' is not accepted by {short}{hint}"
        if found := re.match(r"the following arguments are required: (.*)", cause):
            example = f"'[{ITEMS[short]}]'" if short in ITEMS else f"{problem.option}.{found[1].split(',')[0]} VALUE"
            return f"{problem.option}: {short} needs {found[1]}, such as {example}"
        if problem.setting and cause.endswith(f": {problem.setting}") and "attack.Attack, ..." in problem.subtypes:
            example = f"'[{{class_path: rampart.attacks.PGD, init_args: {{{problem.setting}: {value}}}}}]'"
            return f"{problem.option} is a list, and each item holds its own settings: {problem.option} {example}"
        if found := re.match(r"Not a valid subclass of (\w+)|Subclasses are disabled for (NamedAttack)", cause):
            kind = found[1] or found[2]
            example = f": such as {problem.option} '[{ITEMS[kind]}]'" if kind in ITEMS else ""
            return f"{problem.option} must be a {kind} or a list of them, got {value!r}{example}"
        if cause.startswith("Expected an instantiatable class"):
            return f"{problem.option} must be named before its own settings: {problem.option} CLASS"
        if cause.startswith("Import path does not correspond to a subclass of"):
            base = cause.split()[-1]
            return f"{problem.option} must be the import path of a subclass of {base}, got {value}{HINTS.get(base, '')}"
        if "No module named" in cause or "has no attribute" in cause or cause.startswith("Expected a dot import path"):
            path = problem.class_path if "import path" not in cause else value or cause.rpartition(": ")[2]
            reason = f" ({cause})" if "import path" not in cause else ""
            nearest = _suggest_class(path, KNOWN if problem.option != "--data" else ("datamodules",))
            return f"{problem.option} must be a known name or an import path, got {path}{reason}{nearest}"
    accepted, example = _describe_types(problem)
    if not accepted:
        got = "" if problem.value is None else f", got {value!r}"
        return f"{problem.option}: {' '.join(problem.causes)}{got}"
    return f"{problem.option} must be {accepted}, got {value!r}: such as {problem.option} {example}"


def _describe_types(problem: Problem) -> tuple[str, str]:
    """Return the allowed types in words, and an example, from lines such as ``Expected a <class 'int'>``."""
    allowed: list[str] = []
    examples: list[str] = []
    for cause in problem.causes:
        if found := re.match(r"Expected (?:a )?<class '(.*)'>", cause):
            kind, example = TYPES.get(found[1], (f"a {found[1]}", "VALUE"))
            if kind == "a list":
                example = _list_example(problem.subtypes)
        elif found := re.match(r"Expected (?:a )?typing\.Literal(\[.*\])", cause):
            choices = [str(choice) for choice in ast.literal_eval(found[1])]
            kind = f"{', '.join(choices[:-1])} or {choices[-1]}".removeprefix(" or ")
            example = choices[0]
        else:
            continue
        if kind not in allowed:
            allowed.append(kind)
            examples.append(example)
    return " or ".join(allowed), examples[0] if examples else ""


def _list_example(subtypes: str) -> str:
    for name, item in ITEMS.items():
        if re.search(rf"\b{name}\b", subtypes):
            return f"'[{item}]'"
    return "'[0.3, 8/255]'" if "float" in subtypes else "'[VALUE]'"


def _list_parameters(class_path: str) -> list[str]:
    try:
        return [name for name in inspect.signature(pkgutil.resolve_name(class_path)).parameters if name != "kwargs"]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _suggest(name: str, names: Iterable[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _suggest_option(option: str, options: list[str]) -> str:
    if not option.startswith("-"):
        return f": it belongs to no option; put a value with spaces in quotes, and a list in brackets: '[{option}]'"
    ending = [known for known in options if known.endswith("." + option.lstrip("-"))]
    return f"; did you mean {ending[0]}?" if ending else _suggest(option, options) or ": --help lists the options"


def _suggest_class(path: str, packages: Iterable[str]) -> str:
    module, _, name = path.rpartition(".")
    paths: dict[str, str] = {}
    for known in (module,) if module else packages:
        try:
            content = vars(pkgutil.resolve_name(known))
        except (ImportError, AttributeError, ValueError):
            continue
        paths |= {item: f"{known}.{item}" for item, value in content.items() if callable(value) and item[0] != "_"}
    beginning = [item for item in paths if item.lower().startswith(name.lower())]
    found = beginning or difflib.get_close_matches(name, paths, 1)
    return f"; did you mean {paths[found[0]]}?" if found else ""
