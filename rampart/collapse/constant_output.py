"""Detection of a network whose output is the same for all images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rampart.collapse.signs import Signs, entropy_of

INFORMATION = 0.01
"""Share of the label entropy below which the information counts as none."""

LOSS = 0.95
"""Share of the label entropy that the loss of a constant output is not below."""

IN_A_ROW = 5
"""Number of measurements in a row that make a finding."""

FALLEN = 0.1
"""Share of the first measurement's information below which it has fallen."""

TIMES_AS_LONG = 8
"""Duration of low information that is reported, as a multiple of the duration of the fall."""


@dataclass
class ConstantOutput:
    """Find a constant output, and tell a network that has fallen from one that has not started to learn.

    The output is constant while its information about the image is below 1% of the label entropy, and the loss is that
    of a constant prediction or higher, in five measurements or more. If the network had learned before, this is
    reported at once. Otherwise it may be at its start: many networks lose most of the little information of their first
    random outputs before they learn. They are reported if the information stays below a tenth of that in the first
    measurement for ``grace`` steps, and for eight times as long as the fall took, and does not rise. If it has not
    fallen, training has not started, as in a warm-up of the learning rate; that is reported after ``patience`` steps.

    The fields are the state, except for the first two.

    Attributes:
        grace: Optimizer steps with less information than at first, from which on a network that never learned counts as
            fallen.
        patience: Optimizer steps with a constant output, from which on a network that never learned is reported.
        active: True from a finding until the output is not constant any more.
    """

    grace: int
    patience: int
    active: bool = False
    learned: bool = False
    measurements: int = 0
    label_counts: list[float] = field(default_factory=list)
    loss: float = 0.0
    first: float = 0.0
    recent: float = 0.0
    lowest: float = 0.0
    high_at: int = 0
    fell_at: int | None = None
    streak: int = 0
    streak_since: int = 0
    streak_images: float = 0.0
    streak_loss: float = 0.0
    streak_labels: list[float] = field(default_factory=list)
    changed: int = 0

    def update(self, signs: Signs, step: int) -> str | None:
        """Add a measurement, and return a finding in words; None if there is none, or if it has been reported.

        Args:
            signs: Signs of the step, all finite.
            step: Number of the optimizer step.
        """
        self._follow(signs, step)
        entropy = entropy_of(self.label_counts)
        constant = signs.information < INFORMATION * entropy
        self._count(signs, step, constant)
        if not constant and self.loss < LOSS * entropy and self.measurements >= IN_A_ROW:
            self.learned = True
        self.changed = 0 if constant else self.changed + 1
        if self.active:
            self.active = self.changed < IN_A_ROW
            return None
        if self.streak < IN_A_ROW or self.streak_loss < LOSS * self.streak_images * entropy_of(self.streak_labels):
            return None
        reason = self._explain(step)
        self.active = reason is not None
        return reason

    def _follow(self, signs: Signs, step: int) -> None:
        """Update the averages, and the times at which the information was high and fell."""
        info, first = signs.information, self.measurements == 0
        self.label_counts = _add(self.label_counts, signs.label_counts, 0.95)
        self.loss = signs.loss if first else 0.8 * self.loss + 0.2 * signs.loss
        self.recent = info if first else 0.7 * self.recent + 0.3 * info
        if first:
            self.first, self.lowest, self.high_at = info, info, step
        self.measurements += 1
        self.lowest = min(self.lowest, self.recent)
        if info >= self.first / 2:
            self.high_at, self.fell_at = step, None
        elif self.fell_at is None and info < FALLEN * self.first:
            self.fell_at = step

    def _count(self, signs: Signs, step: int, constant: bool) -> None:
        """Count the measurements in a row with a constant output."""
        if not constant:
            self.streak, self.streak_images, self.streak_loss, self.streak_labels = 0, 0.0, 0.0, []
            return
        self.streak_since = step if self.streak == 0 else self.streak_since
        self.streak += 1
        self.streak_images += signs.images
        self.streak_loss += signs.loss * signs.images
        self.streak_labels = _add(self.streak_labels, signs.label_counts, 1.0)

    def _explain(self, step: int) -> str | None:
        """Return a finding about an output that is constant; None if it may still be the start of a training."""
        if self.learned:
            return "the network had learned, and its output is now the same for all images"
        since = self.high_at if self.fell_at is None else self.fell_at
        waits = max(self.grace, TIMES_AS_LONG * (since - self.high_at))
        rises = self.recent > max(10 * self.lowest, 1e-4 * INFORMATION * entropy_of(self.label_counts))
        if self.fell_at is not None and step - self.fell_at >= waits and not rises:
            return "the network never learned, and its output is the same for all images"
        if step - self.streak_since >= self.patience and not rises:
            return f"the network has not started to learn in {step - self.streak_since} steps"
        return None


def _add(counts: Sequence[float], more: Sequence[float], weight: float) -> list[float]:
    if len(counts) != len(more):
        return list(more)
    return [weight * count + new for count, new in zip(counts, more, strict=True)]
