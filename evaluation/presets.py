"""Evaluations that have a name."""

from typing import Literal, TypeAlias

from attacks import APGD, FAB, PGD, Attack, Square

Preset: TypeAlias = Literal["quick", "paper", "pgd", "autoattack"]

PRESETS: dict[Preset, tuple[Attack, ...]] = {
    # Minutes become seconds: no number to quote.
    "quick": (PGD(steps=20, iterate="best", stop_when_fooled=True), Square(queries=200)),
    # Shaeiri et al. 2020 on MNIST: the last of 200 iterates.
    "paper": (PGD(steps=200, step_size=0.005),),
    # Ten restarts, each image's worst iterate.
    "pgd": (
        PGD(steps=40, relative_step_size=2.0, step_schedule="linear", restarts=10, iterate="best",
            stop_when_fooled=True),
    ),
    # The standard version of AutoAttack (Croce and Hein 2020).
    "autoattack": (APGD(), APGD(targets=9), FAB(), Square()),
}  # fmt: skip
