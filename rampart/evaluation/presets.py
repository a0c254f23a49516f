"""Evaluations that have a name."""

from typing import Literal, TypeAlias

from rampart.attacks import APGD, FAB, PGD, Attack, Square
from rampart.attacks.eps import NormName

Preset: TypeAlias = Literal["quick", "paper", "pgd", "autoattack"]


def preset_attacks(preset: Preset, norm: NormName = "Linf") -> tuple[Attack, ...]:
    """Return the attacks of an evaluation that has a name, in a norm.

    Args:
        preset: ``quick`` takes seconds and gives no number to quote; ``paper`` is the last of 200 iterates (Shaeiri et
            al. 2020 on MNIST); ``pgd`` each image's worst iterate of ten restarts; ``autoattack`` the standard version
            of AutoAttack (Croce and Hein 2020).
        norm: Of the ball.

    Raises:
        ValueError: If the preset has no form in this norm.
    """
    if preset == "paper" and norm != "Linf":
        raise ValueError(
            f"preset paper is an attack in Linf (steps of 0.005 a pixel), the evaluation is in {norm}: use --preset "
            "autoattack or pgd, or --attacks"
        )
    return {
        "quick": (PGD(norm=norm, steps=20, iterate="best", stop_when_fooled=True), Square(norm=norm, queries=200)),
        "paper": (PGD(norm=norm, steps=200, step_size=0.005),),
        "pgd": (
            PGD(norm=norm, steps=40, relative_step_size=2.0, step_schedule="linear", restarts=10, iterate="best",
                stop_when_fooled=True),
        ),
        "autoattack": (APGD(norm=norm), APGD(norm=norm, targets=9), FAB(norm=norm), Square(norm=norm)),
    }[preset]  # fmt: skip
