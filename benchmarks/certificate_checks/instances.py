"""Verification instances with known outcome: no bound may certify a counterexample's box, no attack break a proved one.

A set is a file ``vnncomp2021_NAME.npz`` with, per instance, ``lower`` and ``upper`` (bounds of the input, flat, in the
network's own scale), ``label``, ``net`` (an ONNX file beside it) and ``verdict``: ``unsat`` (proved robust), ``sat`` (a
counterexample exists) or ``open``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.certificate_checks.boxes import attack_box, certify_box
from benchmarks.certificate_checks.onnx_network import OnnxNetwork
from rampart.attacks import APGD, PGD
from rampart.bounds.certificates import METHODS

PREFIX = "vnncomp2021_"
VERDICTS = ("unsat", "sat", "open")
STARTS = 8  # Copies of a box that one call attacks, each from its own random point.
ATTACKS: tuple[PGD | APGD, ...] = (
    PGD(steps=100, iterate="best", stop_when_fooled=True, loss="margin"),
    APGD(steps=100),
    APGD(steps=50, targets=3),
)


@dataclass(frozen=True)
class Instances:
    """Instances of one network in one set.

    Attributes:
        suite: Name of the set, such as ``oval21``.
        file: ONNX file of the network.
        network: The network.
        index: ``(N,)``, zero-based positions in the set.
        lower: ``(N, ...)``, lower bounds of the input.
        upper: Upper bounds, likewise.
        labels: ``(N,)``, int64.
        verdicts: Known outcome of each instance.
    """

    suite: str
    file: Path
    network: nn.Module
    index: list[int]
    lower: Tensor
    upper: Tensor
    labels: Tensor
    verdicts: list[str]


def read_instances(folder: Path) -> list[Instances]:
    """Read all sets in a folder, one entry per set and network.

    Raises:
        FileNotFoundError: If there is no set.
        ValueError: If a set has another verdict than the three.
    """
    files = sorted(folder.glob(f"{PREFIX}*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder} has no file {PREFIX}*.npz: give the folder that has certified/ in it")
    groups = []
    for file in files:
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in ("lower", "upper", "label", "net", "verdict")}
        if unknown := set(arrays["verdict"].tolist()) - set(VERDICTS):
            raise ValueError(f"{file.name} has verdicts {sorted(unknown)}, allowed: {', '.join(VERDICTS)}")
        for name in dict.fromkeys(arrays["net"].tolist()):
            network = OnnxNetwork(folder / name)
            chosen = np.flatnonzero(arrays["net"] == name)
            lower, upper = (
                torch.tensor(arrays[bound][chosen]).view(-1, *network.image_shape) for bound in ("lower", "upper")
            )
            groups.append(
                Instances(
                    suite=file.stem.removeprefix(PREFIX),
                    file=folder / name,
                    network=network,
                    index=chosen.tolist(),
                    lower=lower,
                    upper=upper,
                    labels=torch.tensor(arrays["label"][chosen]),
                    verdicts=arrays["verdict"][chosen].tolist(),
                )
            )
    return groups


def check_instances(group: Instances, seed: int) -> list[dict[str, Any]]:
    """Bound and attack each instance of a group.

    Args:
        group: The instances.
        seed: Seed of the attacks' random starts.

    Returns:
        One row per instance: its names and verdict, the bounds that certify it, and the attack that found a
        counterexample.
    """
    rows = []
    for position, (index, verdict) in enumerate(zip(group.index, group.verdicts, strict=True)):
        box = group.network, group.lower[position], group.upper[position], int(group.labels[position])
        certified = [method for method in METHODS if certify_box(*box, method)]
        found = attack_box(*box, ATTACKS, STARTS, seed + index)
        rows.append(
            {
                "set": group.suite,
                "instance": index,
                "network": group.file.name,
                "label": box[-1],
                "verdict": verdict,
                "certified": certified,
                "counterexample": found and {"attack": found.attack, "margin": found.margin},
            }
        )
    return rows


def count_instances(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the rows of each set, network and verdict: certified by each bound, and fooled by an attack."""
    groups = dict.fromkeys((row["set"], row["network"], row["verdict"]) for row in rows)
    counts = []
    for group in sorted(groups):
        chosen = [row for row in rows if (row["set"], row["network"], row["verdict"]) == group]
        counts.append(
            dict(zip(("set", "network", "verdict"), group, strict=True))
            | {"instances": len(chosen)}
            | {f"certified by {name}": sum(name in row["certified"] for row in chosen) for name in METHODS}
            | {"fooled by an attack": sum(row["counterexample"] is not None for row in chosen)}
        )
    return counts


def find_contradictions(rows: list[dict[str, Any]]) -> list[str]:
    """List rows that contradict: a certified ``sat``, a fooled ``unsat``, or one both certified and fooled."""
    found = []
    for row in rows:
        where = f"{row['set']} {row['instance']} ({row['network']}, {row['verdict']})"
        certified, fooled = row["certified"], row["counterexample"]
        if certified and (row["verdict"] == "sat" or fooled):
            found.append(f"{where} is certified by {' and '.join(certified)}")
        if fooled and row["verdict"] == "unsat":
            found.append(f"{where} is fooled by {fooled['attack']}, margin {fooled['margin']:.3g}")
    return found
