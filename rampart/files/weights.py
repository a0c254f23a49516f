"""Load weights from files: execute nothing, match tensors by name and shape, load all of them or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rampart.files.inert_pickle import Unbuilt
from rampart.files.normalisation import check_normalisation
from rampart.files.other_names import translate_names
from rampart.files.text import dtype_name, format_shape, join_names, printable_key, type_name
from rampart.files.weight_checks import check_values, raise_problems
from rampart.files.weight_files import WeightsFile, read_checkpoint, read_file
from rampart.files.weight_names import FileTensor, Match, NetworkNames, choose_match, collect_tensors, find_matches

LIGHTNING_KEY = "pytorch-lightning_version"


@dataclass(frozen=True)
class LoadedWeights:
    """Report of the weights that a network has loaded from a file.

    Attributes:
        network: Name of the network's class.
        source: The file.
        key: Keys that lead to the dictionary of tensors in the file, joined with dots; empty for the file itself.
        prefix: Common prefix of the names in that dictionary, which the network's names lack.
        tensors: Number of tensors loaded.
        numbers: Number of values in them.
        origin: Kind of file.
        kept: Names of the network's tensors that the file lacks and that keep their values.
        left_out: Names of tensors in the dictionary without the prefix, and of other sets of weights that would fit.
        copies: Prefixes in the file of equal copies of the weights.
        cast: Conversions of dtypes, such as ``float16 to float32``.
        note: Remarks on names of another library, and on the normalisation of images in the file and in the network.
    """

    network: str
    source: str
    key: str
    prefix: str
    tensors: int
    numbers: int
    origin: str
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        """Return one line that reports the match."""
        text = f"Loaded {self.tensors} tensors ({self.numbers:,} numbers) into {self.network} from {self.source}"
        text += f", {self.origin}"
        if self.key or self.prefix:
            where = [f"key {self.key}"] * bool(self.key) + [f"prefix {self.prefix}"] * bool(self.prefix)
            text += f"; found under {', '.join(where)}"
        if self.copies:
            text += f"; equal copies under {join_names(self.copies)}"
        if self.cast:
            text += f"; cast {', '.join(self.cast)}"
        if self.kept:
            text += f"; not in the file and kept: {join_names(self.kept)}"
        if self.left_out:
            text += f"; left out: {join_names(self.left_out)}"
        return text + self.note


def load_weights(network: nn.Module, path: str | Path) -> LoadedWeights:
    """Load a file's weights into a network, all or none.

    The file may hold them at any depth and under any prefix; docs/weights.md lists the layouts. If several sets of
    weights fit, equal copies count as one; weights are preferred to their average, and a module's ``network`` to its
    other parts.

    Args:
        network: The network to load; its parameters keep their dtype and device.
        path: A file that :func:`rampart.files.weight_files.read_file` reads.

    Returns:
        A report; its ``str`` is one line to print.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be read safely or doesn't fit the network, which then is unchanged.
    """
    file = read_file(path, network)
    tensors, match, others, renamed = _find_weights(network, file, path)
    weights = {name: tensors[there].value for name, there in match.names.items()}
    check_values(network, weights, path)
    outside = {name: tensors[name].value for name in match.outside if name not in match.copied}
    note, noted = check_normalisation(network, weights, outside, path)
    _copy_weights(network, weights, path)
    roots = {tensors[there].path[: tensors[there].root] for there in match.names.values()}
    key = ".".join(roots.pop()) if len(roots) == 1 else ""
    state = network.state_dict()
    casts = {(weights[name].dtype, state[name].dtype) for name in weights if weights[name].dtype != state[name].dtype}
    return LoadedWeights(
        network=type_name(network),
        source=str(path),
        key=key,
        prefix=match.prefix.removeprefix(f"{key}." if key else ""),
        tensors=len(weights),
        numbers=sum(tensor.numel() for tensor in weights.values()),
        origin=_describe_origin(file),
        kept=tuple(n for n, own in state.items() if n not in weights.keys() | noted and isinstance(own, Tensor)),
        left_out=(
            *(f"{other.prefix}* (other weights that fit)" for other in others),
            *(name.removeprefix(f"{key}.") for name in outside if name not in noted),
        ),
        cast=tuple(sorted(f"{dtype_name(given)} to {dtype_name(own)}" for given, own in casts)),
        copies=tuple(prefix.removeprefix(f"{key}.") if key else prefix for prefix in match.copies),
        note=note + renamed,
    )


def _find_weights(
    network: nn.Module, file: WeightsFile, path: str | Path
) -> tuple[dict[str, FileTensor], Match, list[Match], str]:
    try:
        expected = NetworkNames.from_network(network)
        if not expected.required:
            raise ValueError(f"can't be loaded: {type_name(network)} has no weights")
        tensors = collect_tensors(file.content)
        if not tensors:
            raise ValueError(
                f"holds no network's weights: expected tensors by parameter name, got {_describe_content(file)}"
            )
        tensors, renamed = translate_names(network, expected, tensors)
        match, others = choose_match(find_matches(expected, tensors), tensors)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    state = network.state_dict()
    problems = [
        f"{name} is {format_shape(tensors[match.names[name]].value)} in the file "
        f"and {format_shape(state[name])} in the network"
        for name in match.wrong
    ]
    problems += [f"{name} {format_shape(state[name])} is missing in the file" for name in match.missing]
    problems += [f"{name} {format_shape(tensors[name].value)} is unknown to the network" for name in match.extra]
    raise_problems(network, problems, path)
    return tensors, match, others, renamed


def _copy_weights(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    own = network.state_dict()
    before = {name: value.clone() for name, value in own.items() if isinstance(value, Tensor)}
    try:
        network.load_state_dict({**own, **weights})
    except RuntimeError as error:  # One layer refused its tensor after others were loaded: undo.
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)
        reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ValueError(f"{path} does not fit {type_name(network)}: {'; '.join(reasons)}") from error


def network_weights(checkpoint: Mapping[str, Any], source: str | Path = "checkpoint") -> dict[str, Tensor]:
    """Return the weights of a module's ``network`` from a Lightning checkpoint.

    Args:
        checkpoint: Content of the file.
        source: The file's name, for the message.

    Returns:
        Tensors by the network's names.

    Raises:
        ValueError: If no tensors are found.
    """
    state = checkpoint.get("state_dict")
    named = state.items() if isinstance(state, Mapping) else ()
    own = {name: value for name, value in named if str(name).startswith("network.") and isinstance(value, Tensor)}
    weights = {name.removeprefix("network."): value for name, value in own.items()}
    if not weights:
        keys = ", ".join(map(printable_key, list(checkpoint)[:5]))
        raise ValueError(
            f"{source} holds no network's weights under state_dict: network.*, got the keys {keys}; --ramp.init_from "
            "takes weights from checkpoints of other modules"
        )
    return weights


def check_checkpoint(network: nn.Module, path: str | Path) -> None:
    """Check that a run with this network can be resumed from a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a Lightning checkpoint of a module with this ``network``, or not finite.
    """
    checkpoint = read_checkpoint(path)
    if LIGHTNING_KEY not in checkpoint:
        raise ValueError(f"{path} holds weights alone, a run can't be resumed from it: use --ramp.init_from")
    check_match(network, network_weights(checkpoint, path), path)


def is_checkpoint_of(network: nn.Module, path: str | Path) -> bool:
    """Return True for a Lightning checkpoint of a module whose ``network`` has exactly the names of this network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it can't be read, or is such a checkpoint and its weights do not fit or are not finite.
    """
    file = read_file(path, network)
    if file.kind != "torch" or not isinstance(file.content, dict) or LIGHTNING_KEY not in file.content:
        return False
    state = file.content.get("state_dict")
    names = {str(name) for name in state} if isinstance(state, Mapping) else set()
    if {f"network.{name}" for name in network.state_dict()} != {n for n in names if n.startswith("network.")}:
        return False
    check_match(network, network_weights(file.content, path), path)
    return True


def check_match(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path = "checkpoint") -> None:
    """Check that weights fit the network, tensor by tensor, are finite, and normalise images with the same numbers.

    Raises:
        ValueError: If names, shapes, dtypes or the normalisation differ, or a number is not finite; the message names
            the tensors.
    """
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    problems = [
        f"{name} is {format_shape(weights[name])} in the file and {format_shape(tensor)} in the network"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [f"{n} {format_shape(t)} is missing in the file" for n, t in expected.items() if n not in weights]
    problems += [
        f"{printable_key(n)} {format_shape(t)} is unknown to the network"
        for n, t in weights.items()
        if n not in expected
    ]
    raise_problems(network, problems, source)
    check_values(network, weights, source)
    check_normalisation(network, weights, {}, source)


def _describe_content(file: WeightsFile) -> str:
    content = file.content
    if file.kind == "TorchScript":
        return "TorchScript without tensors, as torch.jit.freeze makes it: save the module before it is frozen"
    if isinstance(content, Mapping):
        if any(isinstance(value, Unbuilt) and value.origin.startswith("numpy.") for value in content.values()):
            return "a pickle of numpy arrays: save them with numpy.savez"
        return f"the keys {', '.join(map(printable_key, list(content)[:5]))}"
    return f"a {type(content).__name__}"


def _describe_origin(file: WeightsFile) -> str:
    content = file.content
    if isinstance(content, Mapping) and LIGHTNING_KEY in content:
        epoch, step = printable_key(content.get("epoch", "?")), printable_key(content.get("global_step", "?"))
        return f"a checkpoint after epoch {epoch} (zero-based), step {step}"
    kinds = {"objects": "a pickle of objects, of which only the tensors were built", "TorchScript": "TorchScript"}
    return kinds.get(file.kind, "plain weights")
