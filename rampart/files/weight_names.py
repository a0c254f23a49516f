"""Match the tensors of a file with a network's names, under any prefix and inside any containers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rampart.files.inert_pickle import Unbuilt
from rampart.files.text import printable_key

# Parts that torch.compile, FSDP and activation checkpointing insert into names.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGES = {"ema", "swa", "avg", "averaged", "average", "shadow"}
# Names of the buffers of a layer that normalises images: mean and standard deviation per channel.
NORMALISERS = (("mean", "std"), ("new_mean", "new_std"), ("mu", "sigma"))


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file.

    Attributes:
        value: The tensor.
        path: Keys of the containers that hold it, outermost first, and its own name, which may have dots.
        root: Number of parts of ``path`` that lead to its dictionary or module.
    """

    value: Tensor
    path: tuple[str, ...]
    root: int


@dataclass
class Match:
    """One way to find all of a network's tensors in a file.

    Attributes:
        prefix: Prefix of the network's names in the file, including the keys of the containers.
        names: The file's names of the tensors, by the network's names.
        extra: Names in the file with this prefix that the network lacks.
        outside: Names in the same dictionary of the file without the prefix.
        wrong: The network's names of tensors that have another shape in the file.
        missing: The network's names that the file lacks.
        copies: Prefixes of equal matches.
        copied: Names of the tensors in equal matches.
    """

    prefix: str
    names: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    copied: set[str] = field(default_factory=set)


def collect_tensors(content: Any) -> dict[str, FileTensor]:
    """Collect all tensors in nested containers, by their keys joined with dots.

    Raises:
        ValueError: If two tensors have one name.
    """
    found: dict[str, FileTensor] = {}
    for tensor in _walk(content):
        name = _strip_wrappers(".".join(tensor.path))
        if found.setdefault(name, tensor) is not tensor:
            raise ValueError(f"holds two tensors with the name {name}")
    return found


def _walk(content: Any) -> Iterator[FileTensor]:
    seen: set[int] = set()  # a container may contain itself
    stack: list[tuple[Any, tuple[str, ...], int]] = [(content, (), 0)]
    while stack:
        value, path, root = stack.pop()
        if isinstance(value, Tensor) and path:
            yield FileTensor(value, path, root)
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        items = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
        if not isinstance(value, Unbuilt):
            named = [(key, part) for key, part in items if isinstance(key, str) or not isinstance(part, Tensor)]
            inner = [
                (part, (*path, printable_key(key)), len(path) + (not isinstance(part, Tensor))) for key, part in named
            ]
        else:  # a module and the modules in it are one dictionary of tensors
            inner = [(part, (*path, printable_key(key)), root) for key, part in _module_parts(value).items()]
        stack += reversed(inner)


def _module_parts(module: Unbuilt) -> dict[Any, Any]:
    parts = [module.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, Mapping) for part in parts):
        return module
    unsaved = module.get("_non_persistent_buffers_set")
    unsaved = unsaved if isinstance(unsaved, set) else set()
    return {name: value for part in parts if part for name, value in part.items() if name not in unsaved}


@dataclass(frozen=True)
class NetworkNames:
    """Names of a network's tensors.

    A plain name is a name without the parts that wrappers such as ``torch.compile`` add.

    Attributes:
        shapes: Shapes of the tensors, by plain name.
        own: Full names in the network, by plain name.
        optional: Plain names that a file may lack: counters of batches, which old files lack, and normalisation,
            which many trainers keep outside the network.
        unsaved: Plain names of tensors that TorchScript files hold and a state_dict does not.
    """

    shapes: dict[str, torch.Size]
    own: dict[str, str]
    optional: frozenset[str]
    unsaved: frozenset[str]

    @classmethod
    def from_network(cls, network: nn.Module) -> "NetworkNames":
        """Collect the names of a network.

        Raises:
            ValueError: If a lazy layer has no shape yet.
        """
        state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
        if any(nn.parameter.is_lazy(value) for value in state.values()):
            raise ValueError("can't be loaded into lazy layers without a shape: give the network an image first")
        own = {_strip_wrappers(name): name for name in state}
        optional = {name for name in own if name.rpartition(".")[2] == "num_batches_tracked"}
        buffers = {_strip_wrappers(name) for name, _ in network.named_buffers()}
        for pair in find_normalisers(own):
            optional |= set(pair) if buffers.issuperset(pair) else set()
        attributes = {
            _strip_wrappers(f"{place}.{name}" if place else name)
            for place, module in network.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        unsaved = (buffers | attributes) - own.keys()
        shapes = {name: state[own[name]].shape for name in own}
        return cls(shapes, own, frozenset(optional), frozenset(unsaved))

    @property
    def required(self) -> list[str]:
        """Plain names that a file must have."""
        return [name for name in self.own if name not in self.optional]


def _strip_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def find_normalisers(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of each normalisation's mean and standard deviation, in pairs."""
    pairs = []
    for name in names:
        layer, dot, own = name.rpartition(".")
        pairs += [
            (name, f"{layer}{dot}{std}") for mean, std in NORMALISERS if own == mean and f"{layer}{dot}{std}" in names
        ]
    return pairs


def find_matches(expected: NetworkNames, tensors: Mapping[str, FileTensor]) -> list[Match]:
    """Find a network's tensors in a file, under any common prefix.

    Returns:
        All complete matches, with every name and shape; if there are none, the nearest match.
    """
    nearest: list[Match] = []
    for own_prefix in _own_prefixes(expected.required):
        short = {name.removeprefix(own_prefix) for name in expected.required}
        counts: Counter[str] = Counter()
        for name in tensors:
            parts = name.split(".")
            places = [place for place in range(len(parts)) if ".".join(parts[place:]) in short]
            counts.update("".join(f"{part}." for part in parts[:place]) for place in places)
        complete = [prefix for prefix, count in counts.items() if count == len(short)]
        likely = complete or [prefix for prefix, _ in counts.most_common(1)] or [_largest(tensors)]
        matches = [_match(expected, tensors, prefix, own_prefix) for prefix in likely]
        if fitting := [match for match in matches if not match.missing and not match.wrong]:
            return fitting
        nearest += matches
    return sorted(nearest, key=lambda match: (len(match.missing), len(match.wrong)))[:1]


def _largest(tensors: Mapping[str, FileTensor]) -> str:
    roots = Counter(tensor.path[: tensor.root] for tensor in tensors.values())
    return "".join(f"{part}." for part in roots.most_common(1)[0][0])


def _own_prefixes(names: list[str]) -> Iterator[str]:
    """Yield the common prefixes of a network's names, shortest first, such as ``module.`` of DataParallel."""
    yield ""
    parts = [name.split(".")[:-1] for name in names]
    for length in range(1, min(map(len, parts), default=0) + 1):
        if len({tuple(part[:length]) for part in parts}) > 1:
            return
        yield ".".join(parts[0][:length]) + "."


def _match(expected: NetworkNames, tensors: Mapping[str, FileTensor], prefix: str, own_prefix: str) -> Match:
    match = Match(prefix)
    for name, own in expected.own.items():
        there = prefix + name.removeprefix(own_prefix)
        if there in tensors:
            shape, own_shape = tensors[there].value.shape, expected.shapes[name]
            if name in expected.optional and shape != own_shape and shape.numel() == own_shape.numel():
                continue  # a normaliser of the same numbers, such as (1, 3, 1, 1) for (3, 1, 1)
            match.names[own] = there
            if shape != own_shape:
                match.wrong.append(own)
        elif name not in expected.optional:
            match.missing.append(own)
    matched = set(match.names.values()) | {prefix + name.removeprefix(own_prefix) for name in expected.unsaved}
    roots = {tensors[name].path[: tensors[name].root] for name in match.names.values()}
    for name, tensor in tensors.items():
        if name not in matched and (tensor.path[: tensor.root] in roots or not roots):
            (match.extra if name.startswith(prefix) else match.outside).append(name)
    normalisers = {name for pair in find_normalisers(dict.fromkeys(match.extra)) for name in pair
                   if _is_per_channel(tensors[name].value)}  # fmt: skip
    match.outside += [name for name in match.extra if name in normalisers]
    match.extra = [name for name in match.extra if name not in normalisers]
    return match


def _is_per_channel(tensor: Tensor) -> bool:
    """Return True for shapes ``(C, 1, 1)`` and ``(1, C, 1, 1)``."""
    return tensor.dim() in (3, 4) and tensor.numel() == tensor.shape[-3]


def choose_match(matches: list[Match], tensors: Mapping[str, FileTensor]) -> tuple[Match, list[Match]]:
    """Choose among complete matches.

    Equal copies count as one match. Among different ones, a training's last weights are preferred to their averages,
    weights under the key ``state_dict`` to others, and a module's ``network`` to its other parts.

    Returns:
        The match, and the others that differ from it.

    Raises:
        ValueError: If several different matches are equally preferred.
    """
    matches = sorted(matches, key=lambda match: (_rank(match.prefix), len(match.extra), len(match.prefix)))
    chosen, *rest = matches
    equal = [match for match in rest if _equal(chosen, match, tensors)]
    others = [match for match in rest if match not in equal]
    chosen.copies += [match.prefix for match in equal]
    chosen.copied.update(name for match in equal for name in match.names.values())
    rivals = [match.prefix for match in others if _rank(match.prefix) == _rank(chosen.prefix)]
    if rivals:
        names = ", ".join(f"{prefix}*" for prefix in (chosen.prefix, *rivals))
        raise ValueError(
            f"holds {len(rivals) + 1} different sets of weights that fit ({names}): save one of them as a "
            "separate state_dict"
        )
    return chosen, others


def _rank(prefix: str) -> tuple[bool, bool, bool]:
    parts = set(prefix.lower().replace("_", ".").replace("-", ".").split("."))
    return bool(parts & _AVERAGES), not prefix.startswith("state_dict."), not prefix.endswith("network.")


def _equal(one: Match, other: Match, tensors: Mapping[str, FileTensor]) -> bool:
    return all(_same(tensors[one.names[name]].value, tensors[there].value) for name, there in other.names.items()
               if name in one.names)  # fmt: skip


def _same(one: Tensor, other: Tensor) -> bool:
    try:
        return one is other or (one.dtype == other.dtype and torch.equal(one, other))
    except RuntimeError:  # sparse or quantised
        return False
