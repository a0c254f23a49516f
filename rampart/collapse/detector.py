"""Detection of collapsed trainings from measured signs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rampart.collapse.constant_output import ConstantOutput
from rampart.collapse.overfitting import Overfitting
from rampart.collapse.signs import Signs

Kind: TypeAlias = Literal["constant output", "catastrophic overfitting", "non-finite logits"]


@dataclass(frozen=True)
class Alarm:
    """A collapse that was found.

    Attributes:
        kind: What has happened.
        step: Optimizer step of the measurement.
        reason: The finding in words.
        seen: The signs in words and numbers; empty for a held-out check.
    """

    kind: Kind
    step: int
    reason: str
    seen: str


class CollapseDetector:
    """Find three kinds of collapse, from numbers alone: the same numbers give the same alarms in every process.

    A kind is reported once per episode: again only after it was over.

    Args:
        grace: Optimizer steps in which the output of a network that never learned may be constant, with less
            information than at first.
        patience: Optimizer steps in which such an output may be constant with as much information as at first, as in a
            warm-up of the learning rate.

    Raises:
        ValueError: If one of them is negative.
    """

    def __init__(self, grace: int = 150, patience: int = 2000) -> None:
        for name, value in (("grace", grace), ("patience", patience)):
            if value < 0:
                raise ValueError(f"{name} must be a number of steps, 0 or more, got {value}")
        self.grace, self.patience = grace, patience
        self.reset()

    def reset(self) -> None:
        """Forget all measurements, as at the start of a training."""
        self._constant, self._overfitting = ConstantOutput(self.grace, self.patience), Overfitting()
        self._not_finite = False

    @property
    def healthy(self) -> bool:
        """True if the latest measurement has no sign of a collapse, and no reported collapse lasts."""
        overfitting = self._overfitting.active or self._overfitting.gap_active
        return not (self._not_finite or overfitting or self._constant.active or self._constant.streak)

    @property
    def learned(self) -> bool:
        """True if the network has learned something since the start or the last :meth:`reset`."""
        return self._constant.learned

    def update(self, signs: Signs, step: int) -> list[Alarm]:
        """Add a measurement, and return new alarms.

        Args:
            signs: Signs of the step.
            step: Zero-based number of the optimizer step.
        """
        was, self._not_finite = self._not_finite, not signs.finite
        if not signs.finite:
            return [] if was else [Alarm("non-finite logits", step, "logits are NaN or infinite", "")]
        seen, found = describe_signs(signs), list[Alarm]()
        if reason := self._constant.update(signs, step):
            found.append(Alarm("constant output", step, reason, seen))
        if self._constant.streak:
            return found  # Without a gradient there is no alignment.
        if reason := self._overfitting.update(signs):
            found.append(Alarm("catastrophic overfitting", step, reason, seen))
        return found

    @property
    def doubts(self) -> bool:
        """True while the alignment falls so far that held-out checks should be more frequent."""
        return self._overfitting.suspicious

    @property
    def at_new_low(self) -> bool:
        """True if the alignment is a tenth lower than ever since its peak."""
        return self._overfitting.low

    @property
    def wants_confirmation(self) -> bool:
        """True if the latest held-out check has found what another one has to confirm."""
        return self._overfitting.found and not self._overfitting.gap_active

    def check(self, images: int, robust: int, lost: int, step: int) -> list[Alarm]:
        """Add a held-out check, and return new alarms.

        Args:
            images: Number of held-out images.
            robust: Number of these that are correctly classified under the training attack.
            lost: Number of the robust ones that a stronger attack fools.
            step: Zero-based number of the optimizer step.
        """
        reason = self._overfitting.check(images, robust, lost) if images else None
        return [Alarm("catastrophic overfitting", step, reason, "")] if reason else []

    def state_dict(self) -> dict[str, Any]:
        """Return the state, plain values."""
        return {
            "constant": asdict(self._constant),
            "overfitting": asdict(self._overfitting),
            "not_finite": self._not_finite,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ``grace`` and ``patience`` stay those of this detector."""
        settings = {"grace": self.grace, "patience": self.patience}
        self._constant = ConstantOutput(**{**state["constant"], **settings})
        self._overfitting = Overfitting(**state["overfitting"])
        self._not_finite = state["not_finite"]


def describe_signs(signs: Signs) -> str:
    """Return the signs in words and numbers, in one line."""
    parts = [
        f"loss {signs.loss:.3f} (constant: {signs.label_entropy:.3f})",
        f"information {signs.information:.1g} nats",
        f"{signs.top_share:.0%} predicted as class {signs.top_class}",
        f"spread {signs.spread:.1g}",
    ]
    if signs.grad_norm is not None:
        parts.append(f"gradient norm {signs.grad_norm:.2g}")
    if signs.alignment is not None:
        parts.append(f"alignment {signs.alignment:.2f}")
    return ", ".join(parts)
