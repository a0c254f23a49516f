"""Detection of catastrophic overfitting: the network is robust to the training attack alone."""

from dataclasses import dataclass, field
from statistics import median

from rampart.collapse.signs import Signs

HISTORY = 40
"""Number of measurements, and of held-out checks, that are the recent history."""

RECENT = 5
"""Number of measurements that are compared with the history."""

FALL = 0.5
"""Share of its history below which the alignment has fallen."""

LOW = 0.1
"""Alignment below which the loss hardly rises along the perturbation any more."""

GAP = 0.15
"""Rise of the gap between the accuracies under training attack and stronger attack."""


@dataclass
class Overfitting:
    """Find catastrophic overfitting, by the alignment of training steps and by accuracies of held-out images.

    As eps rises, the alignment falls slowly and the gap between both accuracies grows slowly, in every training. What
    is reported is a sudden change.

    The fields are the state.

    Attributes:
        active: True from a finding until the alignment, or the gap, is normal again.
        alignments: Latest alignments.
        gaps: Latest gaps between the accuracies.
    """

    active: bool = False
    gap_active: bool = False
    alignments: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def update(self, signs: Signs) -> str | None:
        """Add a measurement, and return a finding in words; None if there is none, or if it has been reported.

        Args:
            signs: Signs of the step.
        """
        if signs.alignment is None:
            return None
        self.alignments = [*self.alignments, signs.alignment][-HISTORY - RECENT :]
        history, recent = self.alignments[:-RECENT], self.alignments[-RECENT:]
        if len(history) < 2 * RECENT:
            return None
        before, now = median(history), sum(recent) / RECENT
        fallen = now < min(LOW, FALL * before)
        if self.active or not fallen:
            self.active &= now < 2 * LOW
            return None
        self.active = True
        return f"the alignment of the perturbations with the input gradient has fallen from {before:.2f} to {now:.2f}"

    def check(self, accuracy: float, stronger: float) -> str | None:
        """Add a held-out check, and return a finding in words; None if there is none, or if it has been reported.

        Args:
            accuracy: Accuracy of the held-out images under the training attack, in [0, 1].
            stronger: Accuracy of the same images under a stronger attack.
        """
        gap = accuracy - stronger
        before = median(self.gaps) if self.gaps else None
        risen = before is not None and gap > max(before, 0.0) + GAP
        if not risen:
            self.gaps = [*self.gaps, gap][-HISTORY:]
        if self.gap_active or not risen:
            self.gap_active &= risen
            return None
        self.gap_active = True
        return f"held-out accuracy is {accuracy:.0%} under the training attack, but {stronger:.0%} under a stronger one"
