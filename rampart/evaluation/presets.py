"""Named sets of attacks."""

from typing import Literal, TypeAlias

from rampart.attacks import APGD, FAB, PGD, Attack, NormName, Square

Preset: TypeAlias = Literal["quick", "paper", "pgd", "autoattack"]


def preset_attacks(preset: Preset, norm: NormName = "Linf") -> tuple[Attack, ...]:
    """Return the attacks of a named evaluation.

    Args:
        preset: ``quick`` takes seconds, and its numbers should not be quoted; ``paper`` is PGD with 200 steps and the
            last iterate (Shaeiri et al. 2020 on MNIST); ``pgd`` is PGD with ten restarts and each image's worst
            iterate; ``autoattack`` is the standard version of AutoAttack (Croce and Hein 2020).
        norm: Norm of the attacks, and of eps.

    Raises:
        ValueError: If the preset is not defined for this norm.
    """
    if preset == "paper" and norm != "Linf":
        raise ValueError(
            f"preset paper is an attack in Linf (step size 0.005 per pixel), the evaluation is in {norm}: use --preset "
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
